"""Figure 4: the loss with the top routed experts masked.

  python -m launch.sweep --sweep=experiments/studies/disable_top.py

In the trained models each token has a share of the routed experts masked, those of the highest
affinity, and takes the top k of the rest. GShard×1.5 starts from the same loss. The paper's numbers
(2B, Pile loss, read off the plot):

  share masked    0      1/16   2/16   3/16   4/16
  DeepSeekMoE     1.8    7.5    8.2    8.7    9.1
  GShard×1.5      1.8    5.6    7.5    7.6    7.7

What has to carry over: at every share the loss of DeepSeekMoE rises more.
"""

from collections.abc import Sequence

from experiments.studies.analysis import (
  LOSS_AXIS,
  LOSS_COLUMNS,
  Analysis,
  Entry,
  Panel,
  Results,
  Series,
  given,
  losses,
  sided,
)
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.intervals import Interval, difference, interval
from experiments.studies.verdicts import Comparison

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Figure 4'
CLAIM = (
  'DeepSeekMoE depends more on its top routed experts than GShard×1.5: its experts are less '
  'redundant.'
)
# A share of 0 needs no evaluation: it is the run's own loss.
_MASKED = {f'masked {share}/16': {'masked_share': share / 16} for share in range(1, 5)}


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant, evaluations=_MASKED) for variant in ('deepseek_moe', 'gshard_x1_5')]


_PAPER = {'DeepSeekMoE': (1.8, 7.5, 8.2, 8.7, 9.1), 'GShard×1.5': (1.8, 5.6, 7.5, 7.6, 7.7)}
_RUNS = {'DeepSeekMoE': 'deepseek_moe', 'GShard×1.5': 'gshard_x1_5'}
_EVALUATIONS = ('', *_MASKED)
_ENTRIES = tuple(
  Entry(f'{label}, {evaluation}' if evaluation else label, run, _PAPER[label][share], evaluation)
  for label, run in _RUNS.items()
  for share, evaluation in enumerate(_EVALUATIONS)
)


def analyse(results: Results) -> Analysis:
  """How far the loss rises at each share, one model against the other."""
  rise = {
    label: [difference(results.loss(run, evaluation), results.loss(run)) for evaluation in _MASKED]
    for label, run in _RUNS.items()
  }
  comparisons = tuple(
    Comparison(
      f"top {share + 1}/16 masked: rise − GShard×1.5's",
      difference(rise['DeepSeekMoE'][share], rise['GShard×1.5'][share]),
      above=0.0,
      words=sided('its loss rises by', ('more', 'less'), f' with the top {share + 1}/16 masked'),
      paper=(_PAPER['DeepSeekMoE'][share + 1] - _PAPER['DeepSeekMoE'][0])
      - (_PAPER['GShard×1.5'][share + 1] - _PAPER['GShard×1.5'][0]),
    )
    for share, evaluation in enumerate(_MASKED)
  )
  ours = [interval(results.loss(entry.run, entry.evaluation)) for entry in _ENTRIES]
  paper = [given(entry.paper) for entry in _ENTRIES]
  axis = 'top routed experts masked, sixteenths of all'
  return Analysis(
    LOSS_COLUMNS,
    losses(results, _ENTRIES),
    comparisons,
    (
      Panel('This repository', LOSS_AXIS, _series(ours), x_axis=axis),
      Panel(
        'The paper, Figure 4 (2B)',
        'Pile loss, nats a token',
        _series(paper, paper=True),
        x_axis=axis,
      ),
    ),
    'How irreplaceable experts become by the end of a long training: after few tokens they may be '
    'less specialised, which would make the rise smaller (see the study longer).',
  )


def _series(found: Sequence[Interval | None], paper: bool = False) -> tuple[Series, ...]:
  """One line per model. `found` is in the order of _ENTRIES."""
  shares = len(_EVALUATIONS)
  return tuple(
    Series(label, tuple((share, found[number * shares + share]) for share in range(shares)), paper)
    for number, label in enumerate(_RUNS)
  )
