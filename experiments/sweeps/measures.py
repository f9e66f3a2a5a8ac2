"""The measures of a trained run besides its losses, as plain JSON: `Run.measures` names
them, and a line of runs.jsonl has what they found.
"""

from collections.abc import Callable

import numpy as np

from moe import analysis
from moe.analysis import gates, measures, probes, redundancy
from moe.data.store import PreparedData
from moe.inspection import Run

CLOSED = 0.1  # below this a gate is closed


def specialisation(run: Run, data: PreparedData) -> dict[str, list[float]]:
  """How specialised experts are, by MoE layer, over held-out text. What one choice of a token tells
  of three things, as a share of their entropy: the domain of its text (less what chance shows), the
  class of its piece, and the class of the next piece. And how far the loss rises, in the mean, with
  another expert's weights in an expert's place, and with none (moe/analysis/redundancy.py).
  """
  counted = analysis.survey(run.config, run.params, data)
  domain = analysis.information(counted.sequences_NXE, counted.domain_X, len(counted.domains))
  replaced = redundancy.measure(run.config, run.params, data)
  return _rounded(
    {
      'domain': domain.share_N,
      'class': _share(counted.classes_NCE),
      'next_class': _share(counted.next_NCE),
      'substituted': replaced.substituted_NX.mean(axis=1),
      'removed': replaced.removed_NX.mean(axis=1),
    }
  )


def recall(run: Run, data: PreparedData) -> dict[str, list[float]]:
  """The losses of copying and lookup, after the same text and after other
  (moe/analysis/probes.py), in nats, each a list of one.
  """
  found = probes.losses(run.config, run.params, data)
  return _rounded({name: np.array([value]) for name, value in found._asdict().items()})


def shared_gate(run: Run, data: PreparedData) -> dict[str, list[float]]:
  """How open the gate of the shared experts is, by MoE layer, over held-out text: its mean for each
  class of piece that occurs, and for what share of all tokens it is below CLOSED.
  """
  found = gates.openness(run.config, run.params, data)
  of_classes = zip(analysis.TOKEN_CLASSES, found.mean_NC.T, strict=True)
  means = {name: mean_N for name, mean_N in of_classes if np.isfinite(mean_N).all()}
  return _rounded(means | {'closed': found.share_below(CLOSED)})


# The names are those of experiments.studies.common.MEASURES, a module that does not import jax.
MEASURE: dict[str, Callable[[Run, PreparedData], dict[str, list[float]]]] = {
  'specialisation': specialisation,
  'recall': recall,
  'shared_gate': shared_gate,
}


def _share(counts_NGE: np.ndarray) -> np.ndarray:
  """I(expert; group) ÷ H(group), by layer."""
  of_group_NG = measures.shares(counts_NGE.sum(axis=2))
  return measures.mutual_information(counts_NGE) / measures.entropy(of_group_NG)


def _rounded(found):
  return {name: [round(float(value), 6) for value in values] for name, values in found.items()}
