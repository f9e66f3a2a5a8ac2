"""The pilot of the long scale: chooses what its studies share, before any of them is run.

  python -m launch.sweep --sweep=experiments/studies/pilot_long.py --seeds=1 --parallel=2

Asked for before the first run: a run sees at least 40 tokens an activated parameter of DeepSeekMoE,
where the earlier scale (pilot.py) had 3; an expert gets hundreds of tokens a step, so that its load
is far from noise; everything that the studies need takes at most 25 hours of two cores.

Stage 1 chooses width and vocabulary: GShard and DeepSeekMoE at three shapes, one seed, one learning
rate, each for 40 tokens an activated parameter. Widths are multiples of 12, where a quarter of an
FFN is a whole number of eights, so that experts of both sizes have exactly the same parameters. The
shape taken has the largest difference between the two, set against its cost: d 48 with 2048 pieces,
−0.033, where d 48 with 1024 has −0.022 and d 60 −0.013. Runs are in float32, whose speed and
rounding depend less on the kind of machine than bfloat16's.
Stage 2 chooses the learning rate at that shape. Every architecture that is compared, Dense×4 and
Dense×16 included, is tried at the same rates: a quarter of the steps each, with a whole schedule.
Later, before the study scaling was run, its other widths were tried too, at the best rate of d 48,
a quarter of it, half of it and twice it. So were 2 and 4 shared experts at d 48, when Section 4.4
had stayed undecided at the rate found for 1. Stage 3 repeats the five models of Table 1 with three
seeds (table1.py --seeds=3): the spread of their paired differences sets the number of seeds of
every study (intervals.seeds_for: power 0.9 for half of the paper's difference, 5 at least).

Speed on one core of a Xeon with AMX, in float32, while the other core was busy, and the time that
40 tokens an activated parameter take there: d 48 with 1024 pieces 18 thousand tokens a second, 9
minutes; d 48 with 2048 pieces 17 thousand, 13 minutes; d 60 with 1024 pieces 14 thousand, 17
minutes. The studies have about 25 configs; with 5 seeds each, and with Dense×16, which takes three
times as long as DeepSeekMoE, they take 12, 17 or 22 hours of two cores.
"""

from fractions import Fraction

from experiments.studies.analysis import NONE, Results
from experiments.studies.common import LONG, Run, Scale, long_scale
from experiments.studies.intervals import difference
from experiments.studies.pilot import Table, text

_RATE = 3e-3
# Of the best rate at d 48. The first factor was added when half was best for Dense of d 96.
FACTORS = (0.25, 0.5, 1, 2)
# One more for those that were best at the first or the last, by variant and width.
_FURTHER_FACTORS = {('dense', 96): 0.125, ('deepseek_moe', 24): 4}
_ALL_FACTORS = sorted({*FACTORS, *_FURTHER_FACTORS.values()})
# The last rate was added when 6e-3 was the best of the first three for all that had been tried.
RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
# One more for those that were best at the last.
_FURTHER = 2.4e-2
_COMPARED = (
  *('dense', 'hash', 'switch', 'gshard', 'deepseek_moe'),
  *('dense_x4', 'dense_x16'),
)
_RATES_OF = (
  dict.fromkeys(_COMPARED, RATES)
  | dict.fromkeys(('dense', 'hash', 'dense_x16'), (*RATES, _FURTHER))
  | dict.fromkeys(('shared_2', 'shared_4'), RATES[1:])
)
SCALE = 'long'
TITLE = 'The pilot of the long scale'
CHOICE = (
  'Every run has 3 layers and 2 heads, sequences of 128 tokens, 32 of them a step, and float32, '
  'whose speed and rounding depend less on the kind of machine; depth and batch were not searched. '
  'What was asked for before the first run: at least 40 tokens per activated parameter of '
  'DeepSeekMoE, hundreds of tokens a step for an expert, and no more than 25 hours of two cores '
  'for everything.',
  'The first stage chose the shape, by GShard and DeepSeekMoE with one seed at a learning rate of '
  '0.003. The shape taken has the largest difference between the two, set against its cost: d 48, '
  "a vocabulary of 2048, 3360 steps, 13.8M tokens. So Table 1's difference may be larger here than "
  'at other shapes of this size. At this one, a core of the machine of the pilot trains on 17 '
  'thousand tokens a second, 13 minutes a run, so that 25 configs with five seeds were to take 17 '
  'hours of two cores. Other machines have since taken 6 to 23 minutes a run, and studies were '
  'added: the hours that were spent are on the page of all studies.',
  'The second stage chose the learning rate at that shape. Every architecture was tried at the '
  'same rates, for a quarter of the steps with a whole schedule. 0.012 was added when 0.006 was '
  'the best of the first three, and 0.024 for the three architectures that were best at 0.012. '
  'Each has its best rate: 0.012 for Dense, Hash Layer and Dense×16, 0.006 for Switch, GShard, '
  'DeepSeekMoE and Dense×4. Variants that were not tried have that of DeepSeekMoE.',
  'The third stage measured the spread, by three seeds of the five models of Table 1; these whole '
  'runs are runs of that study, too. DeepSeekMoE minus GShard varies by 0.004 (standard '
  'deviation), minus Switch by 0.009, minus Hash Layer by 0.027, minus Dense by 0.015: a power of '
  "0.9 for half of the paper's differences asks for 3, 3, 5 and 3 seeds. Every study of the paper "
  'has 5. Half of a third of the difference between GShard and DeepSeekMoE, which a step of Figure '
  '3 may be, asks for 5, too. Over five seeds the difference from GShard turned out to vary by '
  '0.010, by which that step would need 13.',
  'Two searches came later, at a quarter of the steps, too. When Section 4.4 had stayed undecided '
  'at the rate found for 1 shared expert, 2 and 4 were tried: 0.006 and 0.012 are within 0.004 for '
  'both, so that the rate is not the cause and its runs stay as they are. Before the other widths '
  'of the study of scaling were run, each was tried at a quarter, half, once and twice the best '
  'rate of d 48, and at one rate more where the best was the first or the last.',
)
# Width, head width, vocabulary, steps of 4096 tokens:
# 40 tokens an activated parameter of DeepSeekMoE.
SHAPES = {
  'd48_v1024': (48, 24, 1024, 2400),
  'd48_v2048': (48, 24, 2048, 3360),
  'd60_v1024': (60, 30, 1024, 3440),
}


def sweep(scale: Scale = LONG) -> list[Run]:
  """The runs of stages 1 and 2; those of stage 3 are table1's."""
  return _shapes() + _rates(scale) + _widths(scale)


def _rates(scale):
  return [
    _quarter(scale, variant, f'{variant}_rate_{rate:g}', rate)
    for variant, rates in _RATES_OF.items()
    for rate in rates
  ]


def _widths(scale):
  return [
    _quarter(scale, variant, _of_width(variant, width, rate), rate, width)
    for variant, width in _other_widths(scale)
    for rate in (_best(scale, variant) * factor for factor in _factors_of(variant, width))
  ]


def _quarter(scale, variant, name, rate, width=0):
  changed = scale.of_length(1 / 4) | {'optimizer.peak_lr': rate}
  return scale.run(variant, name, changed, d_model=width)


def _other_widths(scale):
  """Every (variant, d_model) of the study scaling whose width is not that of stage 1."""
  return [
    (variant, width)
    for variant, widths in scale.widths.items()
    for width in widths
    if width != scale.shape[1]
  ]


def _best(scale, variant):
  return scale.rates.get(variant, scale.settings['optimizer.peak_lr'])


def _of_width(variant, width, rate):
  return f'{variant}_d{width}_rate_{rate:g}'


def _factors_of(variant, width):
  further = _FURTHER_FACTORS.get((variant, width))
  return FACTORS if further is None else (*FACTORS, further)


def _shapes():
  return [
    long_scale(width, head_dim, vocabulary, steps).run(
      variant, f'{variant}_{name}', {'optimizer.peak_lr': _RATE}
    )
    for name, (width, head_dim, vocabulary, steps) in SHAPES.items()
    for variant in ('gshard', 'deepseek_moe')
  ]


def tables(results: Results) -> tuple[Table, ...]:
  """Seed 0's losses: of both models by shape; by architecture and learning rate; and by width and
  learning rate.
  """
  shapes = []
  for name in SHAPES:
    gshard, moe = (results.loss(f'{variant}_{name}') for variant in ('gshard', 'deepseek_moe'))
    shapes.append((name, *(_text(loss) for loss in (gshard, moe, difference(moe, gshard)))))
  rates = tuple(
    (variant, *(_text(results.loss(f'{variant}_rate_{rate:g}')) for rate in (*RATES, _FURTHER)))
    for variant in _RATES_OF
  )
  widths = tuple(
    (
      f'{variant}, d {width}',
      *(
        _text(results.loss(_of_width(variant, width, _best(LONG, variant) * factor)))
        for factor in _ALL_FACTORS
      ),
    )
    for variant, width in _other_widths(LONG)
  )
  return (
    (('shape', 'GShard', 'DeepSeekMoE', 'DeepSeekMoE − GShard'), tuple(shapes)),
    (('held-out loss at peak learning rate', *(f'{rate:g}' for rate in (*RATES, _FURTHER))), rates),
    (('times the best rate at d 48', *(str(Fraction(each)) for each in _ALL_FACTORS)), widths),
  )


def _text(values):
  return text(values[0]) if 0 in values else NONE
