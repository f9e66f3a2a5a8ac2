"""Beyond the paper: what came after its balance losses, for DeepSeekMoE and for GShard.

  python -m launch.sweep --sweep=experiments/studies/balancing.py

Seven ways to balance: none; the expert-level loss (Eq. 12) at 0.001 and 0.01; the device-level loss
(Eq. 15) alone; the bias of loss-free balancing (arXiv 2408.15664), alone and with a small loss by
sequence as in DeepSeek-V3 (arXiv 2412.19437); and the bias of quantile balancing (docs/routing.md).
Loss-free balancing is claimed to be more even than the auxiliary loss at 0.001, at a loss no higher
(a 1B model, 100B tokens: MaxVio over all text 0.04 against 0.72, perplexity 9.50 against 9.56).
What has to carry over, for DeepSeekMoE: with the bias MaxVio over the last tenth of training, here
of batches of 4096 tokens, is lower than with the loss of 0.001, and held-out loss is no more than
0.02 higher. Beside the claim: the same for the quantile, and for GShard.
"""

from statistics import mean

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  LOSS_AXIS,
  Analysis,
  Panel,
  Results,
  Series,
  differences,
  dots,
  given,
  shown,
  sided,
)
from experiments.studies.common import LONG, Run, Scale
from experiments.studies.intervals import difference
from experiments.studies.verdicts import ABOUT, Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = 'Loss-free balancing is more even than a balance loss of 0.001, and costs almost no loss.'
_MODELS = {'deepseek_moe': 'DeepSeekMoE', 'gshard': 'GShard'}
_WARM_UP = LONG.settings['optimizer.warmup_steps']  # in which MaxVio is many times as high
_GROUPS = {'deepseek_moe': 7, 'gshard': 4}  # of 9 and of 4 experts
_ALPHA = 'moe.expert_balance_weight'
_WAYS = {
  'none': {_ALPHA: 0.0},
  'loss 0.001': {_ALPHA: 0.001},
  'loss 0.01': {_ALPHA: 0.01},
  'device loss 0.05': {_ALPHA: 0.0, 'moe.device_balance_weight': 0.05},
  'bias': {_ALPHA: 0.0, 'moe.balancing': 'bias'},
  'bias, loss 0.0001': {_ALPHA: 0.0001, 'moe.balancing': 'bias'},
  'quantile': {_ALPHA: 0.0, 'moe.balancing': 'quantile'},
}


def sweep(scale: Scale = LONG) -> list[Run]:
  return [
    scale.run(variant, _name(variant, way), _overrides(variant, way))
    for variant in _MODELS
    for way in _WAYS
  ]


def _name(variant, way):
  return f'{variant}_{way.replace(", ", "_").replace(" ", "_")}'


def _overrides(variant, way):
  groups = {'moe.device_groups': _GROUPS[variant]} if way.startswith('device') else {}
  return _WAYS[way] | groups


_COLUMNS = (
  *('model, balanced by', 'seeds', HELD_OUT_LOSS, '95% interval'),
  *('MaxVio', '95% interval', 'idle experts'),
)


def analyse(results: Results) -> Analysis:
  """Loss, MaxVio and idle experts for both models and every way; MaxVio over training."""
  rows, panels, curves, comparisons = [], [], [], []
  for variant, model in _MODELS.items():
    loss = {way: results.loss(_name(variant, way)) for way in _WAYS}
    max_vio = {
      way: results.values(_name(variant, way), lambda line: line['max_vio']['last_tenth'])
      for way in _WAYS
    }
    idle = {
      way: results.values(_name(variant, way), lambda line: line['idle_experts']) for way in _WAYS
    }
    rows += [
      (
        f'{model}, {way}',
        *shown(loss[way]),
        *shown(max_vio[way], 3)[1:],
        shown(idle[way], 2)[1],
      )
      for way in _WAYS
    ]
    for way in ('bias', 'quantile'):
      role = Role.CLAIM if (variant, way) == ('deepseek_moe', 'bias') else Role.BESIDE
      comparisons += _beside_the_loss(model, way, max_vio, loss, role)
    panels += [
      dots(f'{model}: held-out loss', LOSS_AXIS, loss),
      dots(
        f'{model}: MaxVio, last tenth of training',
        "busiest expert's load ÷ mean − 1",
        max_vio,
        from_zero=True,
        digits=2,
      ),
    ]
    curves.append(_curves(f'{model}: MaxVio over training', results, variant))
  panels += [*curves, differences('Paired differences of loss', comparisons)]
  return Analysis(
    _COLUMNS,
    tuple(rows),
    tuple(comparisons),
    tuple(panels),
    'What imbalance costs across devices; how even the load over all text is. MaxVio here is that '
    'of a batch of 4096 tokens, of which an expert of DeepSeekMoE gets 455 on average, so that '
    'chance alone makes it about 0.1. Sigmoid affinities, which loss-free balancing was made for, '
    'are not tried, nor are steps of the bias other than 0.001.',
  )


def _beside_the_loss(model, way, max_vio, loss, role):
  what = f'{model}, {way} − loss 0.001'
  than = f' with the {way} than with a balance loss of 0.001 in {model}'
  beside = lambda measure: difference(measure[way], measure['loss 0.001'])
  return [
    Comparison(
      f'MaxVio: {what}',
      beside(max_vio),
      below=0.0,
      digits=3,
      role=role,
      unit='MaxVio',
      words=sided('MaxVio is', after=than),
    ),
    Comparison(
      f'loss: {what}',
      beside(loss),
      below=ABOUT,
      role=role,
      words=sided('the held-out loss is', after=than),
    ),
  ]


def _curves(title: str, results: Results, variant: str) -> Panel:
  return Panel(
    title,
    "busiest expert's load ÷ mean − 1",
    tuple(Series(way, _mean_curve(results, _name(variant, way))) for way in _WAYS),
    x_axis='step',
    from_zero=True,
  )


def _mean_curve(results: Results, run: str):
  """MaxVio at each step after the warm-up, the mean over seeds (no interval: it would hide the
  other curves). Leaves out steps that a seed lacks since it has diverged.
  """
  curves = [dict(line['max_vio_curve'] or ()) for line in results.lines if line['run'] == run]
  steps = set.intersection(*map(set, curves)) if curves else set()
  later = sorted(step for step in steps if step > _WARM_UP)
  values = {step: [curve[step] for curve in curves] for step in later}
  return tuple((step, given(mean(each))) for step, each in values.items() if None not in each)
