"""Tables 3 and 6: loss over training compute, Dense and DeepSeekMoE.

  python -m launch.sweep --sweep=experiments/studies/scaling.py

Dense and DeepSeekMoE at several widths, everything else equal, give two curves of held-out loss
over training FLOPs, and the share of Dense's compute at which DeepSeekMoE has the same loss. The
paper's numbers, about 40%, and less for larger models:

  DeepSeekMoE 16B beside DeepSeek 7B      40.5% of the FLOPs   Pile bits per byte 0.74 and 0.75
  DeepSeekMoE 145B beside DeepSeek 67B    28.5%                Pile loss 1.876 and 1.905
  142B, half activated, beside 67B        18.2%                Pile loss 1.888 and 1.905

What has to carry over: the share is below one half at the best Dense, the one of the lowest loss,
by a law fitted to all runs of a seed: above one common floor, each model's loss is a power of its
compute. Presupposed: the law leaves less than 0.02 of loss (root mean square).
Beside the claim: the share, and the loss at equal compute, without a law: read off a straight line
over log FLOPs between two widths. The curve of loss over compute bends and lies below that line, so
that what is read off is an upper bound.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  LOSS_AXIS,
  Analysis,
  Panel,
  Results,
  Series,
  costs,
  given,
  shown,
  valued,
)
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.intervals import interval
from experiments.studies.laws import Curve, Law, fit
from experiments.studies.verdicts import ABOUT, Comparison, Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Tables 3 and 6'
CLAIM = "DeepSeekMoE reaches a dense model's loss with less than half of its compute."


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [
    scale.run(variant, name=f'{variant}_d{width}', d_model=width)
    for variant, widths in scale.widths.items()
    for width in widths
  ]


_VARIANTS = {'Dense': 'dense', 'DeepSeekMoE': 'deepseek_moe'}
_COLUMNS = (
  'model',
  'parameters',
  'activated',
  'training FLOPs',
  'seeds',
  HELD_OUT_LOSS,
  '95% interval',
)
# Table 6: FLOPs of 4K tokens, Pile loss.
_PAPER = {
  'DeepSeek 67B': ((2057.5e12, 1.905),),
  'DeepSeekMoE 142B half, 145B': ((374.6e12, 1.888), (585.6e12, 1.876)),
}
AT_MOST, AT_LEAST = 'at most', 'at least'
_DRAWN = 50  # points of a law's line
_SHARE = 0.5  # "about 40%", rounded up to what few seeds can tell


def analyse(results: Results) -> Analysis:
  """The two curves of loss over compute, and how far apart they are at the best dense run."""
  widths = {label: _widths(results, variant) for label, variant in _VARIANTS.items()}
  dense, moe = (_curves(results, variant) for variant in _VARIANTS.values())
  pairs = {seed: (dense[seed], moe[seed]) for seed in sorted(dense.keys() & moe.keys())}
  laws = {seed: fit(*pair) for seed, pair in pairs.items() if _is_finite(*pair)}
  rows = tuple(
    (
      f'{label}, width {width}',
      *costs(results, f'{variant}_d{width}'),
      *shown(results.loss(f'{variant}_d{width}')),
    )
    for label, variant in _VARIANTS.items()
    for width in widths[label]
  )
  runs = {
    label: [f'{variant}_d{width}' for width in widths[label]]
    for label, variant in _VARIANTS.items()
  }
  ours = tuple(
    Series(
      label, tuple((results.of(run, 'train_flops'), interval(results.loss(run))) for run in of_one)
    )
    for label, of_one in runs.items()
  )
  fitted = tuple(
    Series(f'{series.name}, the law', _mean_law(series, losses))
    for series, losses in zip(
      ours,
      ([law.dense_loss for law in laws.values()], [law.moe_loss for law in laws.values()]),
      strict=True,
    )
    if losses
  )
  paper = tuple(
    Series(label, tuple((flops, given(loss)) for flops, loss in points), paper=True)
    for label, points in _PAPER.items()
  )
  return Analysis(
    _COLUMNS,
    rows,
    _comparisons(pairs, laws),
    (
      Panel('This repository', LOSS_AXIS, (*ours, *fitted), x_axis='training FLOPs', log_x=True),
      Panel(
        'The paper, Table 6',
        'Pile loss, nats a token',
        paper,
        x_axis='FLOPs of 4K tokens',
        log_x=True,
      ),
    ),
    'Whether the share falls further with size, as from 16B (40.5%) to 145B (28.5%) in the paper. '
    'The law has five numbers for seven runs of a seed, so it would fit many curves; where the '
    "best Dense's loss is not between those of DeepSeekMoE's runs, it extrapolates. "
    'Every width is trained on the same few tokens, so that the compute here buys width alone. '
    'Attention and the output head, equal in both models, take a larger part of the compute of a '
    'small model. The comparisons that do not decide the claim read the loss between two runs off '
    'a straight line over log FLOPs, which lies above a curve that flattens from width to width. '
    'Where the curves do not overlap, they take the nearest DeepSeekMoE run. In both cases the '
    'comparison says "at most" or "at least".',
  )


def _comparisons(
  pairs: Mapping[int, tuple[Curve, Curve]], laws: Mapping[int, Law]
) -> tuple[Comparison, ...]:
  """The comparisons. `pairs`: the curves of Dense and DeepSeekMoE by seed; `laws`: the law of each
  pair that is finite.
  """
  whole = [pair for pair in pairs.values() if _is_finite(*pair)]

  def read_off(what, measure, is_bound, **expected):
    bounds = {bound for pair in whole if (bound := is_bound(*pair))}
    return Comparison(
      ', '.join([what, *sorted(bounds)]),
      {seed: measure(*pair) if _is_finite(*pair) else math.nan for seed, pair in pairs.items()},
      at_most=AT_MOST in bounds,
      at_least=AT_LEAST in bounds,
      **expected,
    )

  share = "DeepSeekMoE's share of the compute at the best Dense's loss"
  ahead = "DeepSeekMoE's loss − the best Dense's, at equal compute"
  fitted = {
    seed: laws[seed].share(best(dense)[0]) if seed in laws else math.nan
    for seed, (dense, _) in pairs.items()
  }
  return (
    Comparison(
      "DeepSeekMoE's share of the compute at the best Dense's, by the law",
      fitted,
      below=_SHARE,
      paper=0.405,
      digits=3,
      unit='share',
      words=valued('DeepSeekMoE needs', ' of the compute of the best Dense'),
    ),
    Comparison(
      'what the law leaves of loss',
      {seed: laws[seed].error if seed in laws else math.nan for seed in pairs},
      below=ABOUT,
      role=Role.PREMISE,
      unit='root mean square',
      words=valued('the law misses losses by', ' (root mean square)'),
    ),
    read_off(
      share,
      compute_share,
      share_is_bound,
      below=_SHARE,
      paper=0.405,
      digits=3,
      unit='share',
      role=Role.BESIDE,
    ),
    read_off(ahead, loss_beside_dense, loss_is_bound, below=0.0, role=Role.BESIDE),
  )


def _mean_law(series: Series, losses: Sequence[Callable[[float], float]]):
  """Points of the mean over seeds of their laws, from the first to the last of a series."""
  first, last = (math.log(series.points[end][0]) for end in (0, -1))
  computes = [math.exp(first + (last - first) * step / (_DRAWN - 1)) for step in range(_DRAWN)]
  return tuple((compute, given(mean(loss(compute) for loss in losses))) for compute in computes)


def best(curve: Curve) -> tuple[float, float]:
  """The point of lowest loss, the cheaper one of equals. It need not be the last: a wider model, or
  one with the wrong learning rate, may have spent more on a higher loss, and beating that would
  show nothing.
  """
  return min(curve, key=lambda point: (point[1], point[0]))


def compute_share(dense: Curve, moe: Curve) -> float:
  """The compute at which `moe` has the loss of the best `dense` point, over that point's compute.

  Between two runs a straight line over log FLOPs gives it. If `moe` is below that loss from its
  first run on, it is that run's compute (the share is no more than that);
  if `moe` never gets there, it is the last run's (the share is no less than that).
  """
  compute, loss = best(dense)
  if moe[0][1] <= loss:
    return moe[0][0] / compute
  for (before, high), (after, low) in itertools.pairwise(moe):
    if low <= loss:
      return (
        math.exp(math.log(before) + (high - loss) / (high - low) * math.log(after / before))
        / compute
      )
  return moe[-1][0] / compute


def share_is_bound(dense: Curve, moe: Curve) -> str:
  """Which bound `compute_share` is, AT_MOST or AT_LEAST; '' if a `moe` run has that very loss."""
  loss, losses = best(dense)[1], [found for _, found in moe]
  if min(losses) > loss:
    return AT_LEAST
  # It is exact only if the first run that is as good has that very loss.
  return '' if next(found for found in losses if found <= loss) == loss else AT_MOST


def loss_beside_dense(dense: Curve, moe: Curve) -> float:
  """The loss of `moe` at the compute of the best point of `dense`, minus that point's."""
  compute, loss = best(dense)
  return loss_at(moe, compute) - loss


def loss_is_bound(dense: Curve, moe: Curve) -> str:
  """Which bound `loss_beside_dense` is, AT_MOST or AT_LEAST;
  '' if a `moe` run has that very compute.
  """
  compute = best(dense)[0]
  if compute < moe[0][0]:
    return AT_LEAST
  return '' if any(compute == found for found, _ in moe) else AT_MOST


def loss_at(curve: Curve, compute: float) -> float:
  """The loss at this compute, by a straight line over log FLOPs between runs;
  outside the curve the loss of the nearest run.
  """
  if compute <= curve[0][0]:
    return curve[0][1]
  for (before, first), (after, second) in itertools.pairwise(curve):
    if compute <= after:
      return first + (second - first) * math.log(compute / before) / math.log(after / before)
  return curve[-1][1]


def _curves(results: Results, variant: str) -> dict[int, Curve]:
  """The curve of each seed that has every width."""
  runs = [f'{variant}_d{width}' for width in _widths(results, variant)]
  losses = [results.loss(run) for run in runs]
  seeds = set.intersection(*(set(loss) for loss in losses)) if losses else ()
  return {
    seed: [(results.of(run, 'train_flops'), loss[seed]) for run, loss in zip(runs, losses)]
    for seed in seeds
  }


def _widths(results: Results, variant: str) -> list[int]:
  """The widths of a variant's runs, whatever their scale."""
  names = [line['run'].rpartition('_d') for line in results.lines]
  return sorted({int(width) for of, _, width in names if of == variant})


def _is_finite(*curves: Curve) -> bool:
  """Whether none of the runs has diverged."""
  return all(math.isfinite(loss) for curve in curves for _, loss in curve)
