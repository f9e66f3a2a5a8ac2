"""Beyond the paper: the shared expert behind a gate of its own.

  python -m launch.sweep --sweep=experiments/studies/shared_gate.py

DeepSeekMoE, and the same with `moe.shared_gate`: the shared expert is weighted by σ(u · w) of each
token (docs/routing.md). If it were equally useful to all text, the gate would be equally open
everywhere. What is claimed: it is not, and its mean openness differs by more than 0.02 between the
most and the least open domain; and the gate costs no loss, no more than 0.02. Shown beside it:
how open it is for every domain, and the loss of each.
"""

from collections.abc import Mapping
from statistics import mean

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  Analysis,
  Entry,
  Results,
  against,
  differences,
  dots,
  shown,
  sizes,
  spread,
)
from experiments.studies.common import DOMAINS, LONG, Run, Scale
from experiments.studies.intervals import Values
from experiments.studies.verdicts import ABOUT, Comparison

SCALE, SEEDS = 'long', 5
CLAIM = (
  'A gate on the shared expert opens differently for different kinds of text, and costs almost no '
  'loss.'
)
_APART = 0.02


def sweep(scale: Scale = LONG) -> list[Run]:
  return [
    scale.run('deepseek_moe'),
    scale.run('deepseek_moe', 'gated', {'moe.shared_gate': True}),
  ]


_PLAIN, _GATED = Entry('DeepSeekMoE', 'deepseek_moe'), Entry('gated shared expert', 'gated')
_COLUMNS = ('model', 'parameters', 'seeds', HELD_OUT_LOSS, '95% interval', *DOMAINS)


def analyse(results: Results) -> Analysis:
  """Losses, and how open the gate is by domain."""
  open_for = {domain: results.reading(_GATED.run, 'shared_gate', domain) for domain in DOMAINS}
  rows = tuple(
    (
      entry.label,
      sizes(results, entry.run)[0],
      *shown(results.loss(entry.run)),
      *(shown(results.domain_loss(entry.run, domain), 3)[1] for domain in DOMAINS),
    )
    for entry in (_PLAIN, _GATED)
  )
  comparisons = (
    Comparison(
      'openness, most − least open domain',
      spread(open_for),
      above=_APART,
      digits=3,
      unit='openness',
      words=_words(open_for),
    ),
    against(results, _GATED, _PLAIN, below=ABOUT),
  )
  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      dots('How open the gate is, mean over layers', 'σ(u · w), held-out text', open_for),
      differences('Paired difference', comparisons),
    ),
    'Several shared experts, each with a gate; which tokens of a domain close the gate; whether '
    'the text alone would tell what it closes for.',
  )


def _words(open_for: Mapping[str, Values]) -> tuple[str, str]:
  """Says for which domain the gate is most, and for which it is least open, in the mean."""
  by_openness = sorted(open_for, key=lambda domain: mean(open_for[domain].values() or [0.0]))
  most, least = by_openness[-1], by_openness[0]
  return (f'the gate is {{}} more open for {most} than for {least}', '')  # never negative
