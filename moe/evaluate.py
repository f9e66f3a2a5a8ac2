"""Scores held-out text: loss and bits per byte by domain,
beside general-purpose compressors on the same bytes.

B sequences, L tokens a sequence, N MoE layers, E routed experts.
"""

import gzip
import lzma
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.config import Config
from moe.data import batches as data_batches
from moe.data.packing import Batch
from moe.data.store import PreparedData
from moe.losses.cross_entropy import token_losses
from moe.metrics.routing import load_over_mean
from moe.metrics.telemetry import shown
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated
from moe.train_step import forward


class Score(NamedTuple):
  """The score of some held-out text. Every token is scored once, ends of documents included."""

  loss: float  # nats a token
  # Over the UTF-8 bytes of the original text; None if it was scored only in part.
  bits_per_byte: float | None
  tokens: int
  bytes: int | None


class Evaluation(NamedTuple):
  """Scores by domain and over all domains, with the load of the routed experts and those readings
  of the layers that are means over tokens, {domain: {NAME: by layer}}.
  """

  domains: dict[str, Score]
  total: Score
  expert_load_NE: np.ndarray | None  # load over the layer's mean
  is_sample: bool = False  # not all held-out text was scored
  readings: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({})
  mean_readings: Mapping[str, np.ndarray] = MappingProxyType({})  # over all real tokens


def held_out_batches(
  data: PreparedData, config: Config, mesh: Mesh | None = None, max_batches: int | None = None
) -> Iterator[tuple[str, Batch]]:
  """Yields (domain, batch) of all held-out documents, or of at most `max_batches` batches a domain.

  `mesh`: the mesh to spread batches over, if there is one.
  """
  for domain in data.held_out_domains:
    for batch in data_batches.evaluation_batches(data, domain, config, max_batches):
      yield domain, place_whole(batch, mesh)


class Evaluator:
  """Scores held-out text with one compiled function; `params` may change between calls."""

  def __init__(
    self, config: Config, data: PreparedData, mesh: Mesh | None = None, forward: Callable = forward
  ):
    """`forward`: a function like `train_step.forward`, the default, to run the model in another
    way.
    """
    self._config, self._data, self._mesh = config, data, mesh
    score = lambda params, batch: _score_batch(config, forward, params, batch)
    self._score = jax.jit(score, out_shardings=replicated(mesh))

  def __call__(self, params: dict, max_batches: int | None = None) -> Evaluation:
    """Scores all held-out documents, or a sample of at most `max_batches` batches a domain.

    The total weighs domains by all their held-out tokens, however many of them were scored.
    """
    scored, counts_NE = dict.fromkeys(self._data.held_out_domains, (0.0, 0)), 0
    sums_of, weights = defaultdict(lambda: defaultdict(float)), defaultdict(int)
    batches = held_out_batches(self._data, self._config, self._mesh, max_batches)
    for domain, batch in batches:
      batch_loss, batch_tokens, batch_counts_NE, (means, weight) = jax.device_get(
        self._score(params, batch)
      )
      loss, tokens = scored[domain]
      scored[domain] = loss + float(batch_loss), tokens + int(batch_tokens)
      counts_NE = counts_NE + batch_counts_NE
      weights[domain] += int(weight)
      for name, mean_N in means.items():
        sums_of[domain][name] += mean_N.astype(np.float64) * int(weight)
    sums = {}
    for domain, found in scored.items():
      size = data_batches.held_out_bytes(self._data, domain) if max_batches is None else None
      # Bytes that the tokens do not represent cost 8 bits each, as without a model.
      sums[domain] = *found, size, 8 * data_batches.lost_bytes(self._data, domain)
    load_NE = np.asarray(load_over_mean(counts_NE)) if np.ndim(counts_NE) else None
    domains = {domain: _make_score(*values) for domain, values in sums.items()}
    total, is_sample = self._total(sums)
    readings = {
      domain: {name: sum_N / max(weights[domain], 1) for name, sum_N in of_domain.items()}
      for domain, of_domain in sums_of.items()
    }
    tokens = max(sum(weights.values()), 1)
    names = {name for of_domain in sums_of.values() for name in of_domain}
    mean_readings = {
      name: sum(of_domain[name] for of_domain in sums_of.values()) / tokens
      for name in sorted(names)
    }
    return Evaluation(domains, total, load_NE, is_sample, readings, mean_readings)

  def _total(self, sums):
    """(Score over all domains of {domain: arguments of _make_score}, whether it is of a sample)."""
    loss, scored, whole = 0.0, 0, 0
    for domain, (domain_loss, tokens, size, _) in sums.items():
      sampled = size is None
      held_out = data_batches.held_out_targets(self._data, domain) if sampled else tokens
      # The factor is exactly 1 where all of them were scored.
      loss += domain_loss * (held_out / max(tokens, 1))
      scored, whole = scored + tokens, whole + held_out
    _, _, sizes, lost = zip(*sums.values(), strict=True)
    score = _make_score(loss, whole, None if None in sizes else sum(sizes), sum(lost))
    return score._replace(tokens=scored), scored != whole


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
  """Bits a byte that gzip -9 and xz -9 need for a text. Empty text counts as one byte."""
  compressors = {
    'gzip -9': lambda data: gzip.compress(data, compresslevel=9, mtime=0),
    'xz -9': lambda data: lzma.compress(data, preset=9),
  }
  return {
    name: 8 * len(compress(text)) / max(len(text), 1) for name, compress in compressors.items()
  }


def report(evaluation: Evaluation, data: PreparedData) -> dict[str, dict[str, object]]:
  """JSON-able rows by domain, the total last: the score beside gzip and xz on the same
  bytes. Each domain is compressed on its own.

  The last row is called 'total', or '(total)' beside a domain of that name:
  no domain's name has brackets.
  """
  texts = {domain: data_batches.held_out_text(data, domain) for domain in data.held_out_domains}
  rows = {
    domain: score._asdict() | compressed_bits_per_byte(texts[domain])
    for domain, score in evaluation.domains.items()
  }
  whole = sum(map(len, texts.values()))
  compressed = {
    name: sum(rows[domain][name] * len(text) for domain, text in texts.items()) / max(whole, 1)
    for name in compressed_bits_per_byte(b'')
  }
  total = '(total)' if 'total' in rows else 'total'
  return rows | {total: evaluation.total._asdict() | compressed}


def experts_in_words(evaluation: Evaluation, config: Config) -> str:
  """A paragraph on the load of the routed experts, to stand under `table`;
  '' for a model without any.
  """
  load_NE = evaluation.expert_load_NE
  if load_NE is None:
    return ''
  layers, experts = load_NE.shape
  taken, idle = evaluation.mean_readings.get('experts_taken'), (load_NE == 0).sum()
  active = config.moe.experts_per_token if taken is None else f'{np.mean(taken):.1f}'
  where = f'{experts} routed, {active} a token, over {layers} MoE layers; on the held-out text'
  return (
    f'\nexperts        {where} the busiest expert of\n'
    f'               a layer has {load_NE.max():.2f} times the mean load at most, '
    f'{idle} of {load_NE.size} experts are idle'
  )


def table(rows: Mapping[str, Mapping[str, object]], text: str = 'held-out text') -> str:
  """The rows of `report` as a table for people. `text`: what was scored, for the head."""
  lines = [
    f'{text:<16}{"tokens":>10}{"bytes":>12}{"loss":>9}{"bits/byte":>11}{"gzip -9":>9}{"xz -9":>8}'
  ]
  for name, row in rows.items():
    bits = '-' if row['bits_per_byte'] is None else f'{row["bits_per_byte"]:.3f}'
    lines.append(
      f'{name:<16}{row["tokens"]:>10,}{row["bytes"]:>12,}{row["loss"]:>9.4f}{bits:>11}'
      f'{row["gzip -9"]:>9.3f}{row["xz -9"]:>8.3f}'
    )
  return '\n'.join(lines)


def _make_score(loss, tokens, size, lost_bits):
  """The Score of Σ loss over `tokens`. `size`: bytes of the text, None if only a part was scored;
  `lost_bits`: the cost of bytes that the tokens do not represent.
  """
  bits_per_byte = (loss / math.log(2) + lost_bits) / size if size else None
  return Score(loss / max(tokens, 1), bits_per_byte, tokens, size)


def summed_loss(config: Config, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Σ loss over a batch's scored targets, and how many these are. Pure, to be jitted."""
  return _summed(config, forward, params, batch)[:2]


def _summed(config: Config, forward: Callable, params: dict, batch: Batch):
  """As `summed_loss`, for a model run by `forward`; and its layers' `Aside`."""
  hidden_BLD, aside = forward(config, params, batch)
  losses_BL = token_losses(hidden_BLD, params['head'], batch.targets_BL, config.train.loss_chunk)
  return (losses_BL * batch.weights_BL).sum(), batch.weights_BL.sum(), aside


def _score_batch(config: Config, forward: Callable, params: dict, batch: Batch):
  """Σ loss and Σ weight over a batch, the expert counts of its real tokens (0 where nothing is
  routed), and (the layers' mean readings over its real tokens, the number of these tokens).
  """
  loss, weight, aside = _summed(config, forward, params, batch)
  counts = aside.telemetry.get('expert_counts')
  counts_NE = counts.value if counts else jnp.zeros((), jnp.int32)
  readings = shown(aside.telemetry)
  means = {name: r.value for name, r in readings.items() if r.reduce == 'mean'}
  real = (batch.segment_ids_BL > 0).sum()
  return loss, weight, counts_NE, (means, real)
