"""Standard errors of scores: the harness's, and one for bits per byte, for which it has none."""

import math
from collections.abc import Callable, Sequence

from lm_eval.api import metrics


def standard_error(metric: Callable, bootstrap_iters: int) -> Callable[[Sequence], float] | None:
  """Replaces the harness's stderr_for_metric, and knows bits per byte as well."""
  if metric is metrics.bits_per_byte:
    return of_bits_per_byte
  return metrics.stderr_for_metric(metric, bootstrap_iters)


def of_bits_per_byte(documents: Sequence[tuple[float, int]]) -> float:
  """The standard error of bits per byte, from (log-probability, bytes) of at least two independent
  documents.

  Bits per byte is a ratio of two sums over them, r = Σa ÷ Σb; to first order its error is that of
  Σ(a − r·b) ÷ Σb.
  """
  count, size = len(documents), sum(b for _, b in documents)
  ratio = sum(a for a, _ in documents) / size
  squares = sum((a - ratio * b) ** 2 for a, b in documents)
  return math.sqrt(count / (count - 1) * squares) / size / math.log(2)
