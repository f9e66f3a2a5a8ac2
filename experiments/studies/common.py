"""What the studies share: the settings of their runs, in one place, and the shape of a study.

A study module has `sweep(scale) -> list[Run]` and `analyse(results) -> Analysis`; `--scale=paper`
takes the same variants at their full size. Everything that a run does not override is equal in all
runs of a study, including a seed's tokens and their order.
"""

import dataclasses
from collections.abc import Mapping

from experiments import proxy, variants
from moe.errors import UserError

# How many seeds a run has if neither its study nor --seeds says otherwise.
SEEDS = 3
# How many seeds the paper's studies have at the scales that came before LONG.
EARLIER_SEEDS = {'proxy': SEEDS, 'paper': SEEDS}
# The bilingual corpus and the instructions of experiments/corpora, which launch.sweep builds where
# they are missing. Paths are relative to the repository, so that a config, and the hash that names
# it, is the same on every machine.
CORPUS, INSTRUCTIONS = 'runs/corpus', 'runs/instructions'
# Skills learnt after the others in the study esft: words by heart, and a rule.
NEW_SKILLS = ('translation', 'reversing')
_INSTRUCTIONS = 'experiments.corpora.instructions'
# {folder: the module that makes it, and its flags}.
CORPORA = {
  CORPUS: ('experiments.corpora.debian_mix',),
  INSTRUCTIONS: (_INSTRUCTIONS,),
  f'{INSTRUCTIONS}_old': (_INSTRUCTIONS, f'--without={",".join(NEW_SKILLS)}'),
  **{f'{INSTRUCTIONS}_{skill}': (_INSTRUCTIONS, f'--only={skill}') for skill in NEW_SKILLS},
}
DOMAINS = ('english', 'chinese', 'code', 'mathematics')

# How a start takes the other run's weights: as they are, or upcycled.
UPCYCLES = ('', 'even', 'random')
# What a run may be measured by besides losses (experiments/sweeps/measures.py).
MEASURES = ('specialisation', 'recall', 'shared_gate')
# How a start's experts to train are chosen: not at all, or as --by of launch.select_experts says.
CHOICES = ('', 'gate', 'share', 'random')

# Chosen by the pilot, before the studies (pilot.py). At multiples of 12 a quarter of an FFN is a
# whole number, so that experts of both sizes have exactly the same parameters.
_LAYERS, _D, _HEAD_DIM = 3, 96, 48

_PROXY_SETTINGS = {
  'model.vocab_size': 2048,
  'model.dtype': 'bfloat16',
  'data.sources': ';'.join(f'{domain}={CORPUS}/{domain}.jsonl' for domain in DOMAINS),
  'data.holdout': 0.02,  # of 93 MB; every run is scored on all of it at its end
  'data.seq_len': 128,
  'data.batch_size': 16,
  'optimizer.peak_lr': 2e-3,
  'optimizer.warmup_steps': 100,
  'train.num_steps': 1500,
  'train.log_every': 20,
  'train.heatmap_every': 750,
  'evaluation.every_steps': 250,
  'evaluation.max_batches': 8,
  'checkpoint.every_steps': 250,
  # With the optimizer's state a checkpoint is three times the model, and runs are many.
  'checkpoint.keep_last': 1,
  'checkpoint.keep_best': 1,
}


@dataclasses.dataclass(frozen=True)
class Start:
  """What a run's weights start from: the last checkpoint of another run of its study, listed before
  it, with the same seed and vocabulary. A run on other text takes that run's tokenizer, and both
  are scored on the text of both (experiments/sweeps/transfer.py).

  `upcycle`: one of UPCYCLES; if set, the other run is dense, and launch.convert makes it a MoE run
  with this --router. `experts`: one of CHOICES; if set, only the experts are trained that
  launch.select_experts chooses with this --by from the other run, at its default --mass, on the
  training text of this one.
  """

  run: str
  upcycle: str = ''
  experts: str = ''


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study, repeated for every seed: `config` (FILE.py[:VARIANT]) with
  `overrides` by dotted key.

  `evaluations`: what to measure on the trained model besides its held-out loss, by name, as the
  keyword arguments of moe.analysis.Intervention, such as {'masked 1/16': {'masked_share': 0.0625}}.
  `measures`: what else to measure, each one of MEASURES.
  """

  name: str
  config: str
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
  evaluations: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
  start: Start | None = None
  measures: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scale:
  """The size of a study's runs. `widths`: each d_model of the scaling study, by variant.
  `rates`: the peak learning rate where that of `settings` is not best, by variant, or by variant
  and another width (dense_d96).
  """

  name: str
  settings: Mapping[str, object]
  shape: tuple[int, int] | None  # layers and d_model of every run; None: each variant's own
  head_dim: int
  widths: Mapping[str, tuple[int, ...]]
  rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def of_length(self, share: float) -> dict[str, int]:
    """Overrides for a share of this scale's steps, with ten evaluations and ten checkpoints. {} for
    a share of 1, and at a scale whose variants have their own number of steps.
    """
    steps = round(share * self.settings.get('train.num_steps', 0))
    often = {f'{what}.every_steps': steps // 10 for what in ('evaluation', 'checkpoint')}
    return {} if share == 1 or not steps else {'train.num_steps': steps} | often

  def run(
    self,
    variant: str,
    name: str = '',
    overrides: Mapping[str, object] | None = None,
    evaluations: Mapping[str, Mapping[str, object]] | None = None,
    d_model: int = 0,
    measures: tuple[str, ...] = (),
  ) -> Run:
    """A run of a variant of proxy.py, by its name, at this scale.
    `d_model`: another width, in the variant's proportions.
    """
    original = proxy.original(variant)
    file = proxy.VARIANTS[variant].__name__.rpartition('.')[2] if self is PAPER else 'proxy'
    layers, width = self.shape or (original.model.num_layers, original.model.d_model)
    size = (
      variants.resized(original, layers, d_model or width, self.head_dim)
      if self.shape or d_model
      else {}
    )
    found = self.rates.get(f'{variant}_d{d_model}', self.rates.get(variant))
    rate = {} if found is None else {'optimizer.peak_lr': found}
    return Run(
      name=name or variant,
      config=f'experiments/{file}.py:{variant}',
      overrides={**self.settings, **size, **rate, **(overrides or {})},
      evaluations=evaluations or {},
      measures=measures,
    )


def _widths(dense: tuple[int, ...], moe: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
  return {'dense': dense, 'deepseek_moe': moe}


PROXY = Scale(
  'proxy',
  _PROXY_SETTINGS,
  shape=(_LAYERS, _D),
  head_dim=_HEAD_DIM,
  widths=_widths((48, 96, 144), (48, 96, 144)),
)
PAPER = Scale(
  'paper', {}, shape=None, head_dim=128, widths=_widths((640, 896, 1280), (640, 896, 1280))
)


def long_scale(
  d_model: int,
  head_dim: int,
  vocab_size: int,
  num_steps: int,
  rates: Mapping[str, float] | None = None,
) -> Scale:
  """A scale of smaller models than PROXY's with many more tokens an activated parameter:
  3 layers, 2 heads, 4096 tokens a step.
  """
  settings = _PROXY_SETTINGS | {
    'model.vocab_size': vocab_size,
    'model.dtype': 'float32',
    'data.batch_size': 32,
    'optimizer.peak_lr': 6e-3,
    'optimizer.warmup_steps': 150,
    'train.num_steps': num_steps,
    'evaluation.every_steps': num_steps // 10,
    'checkpoint.every_steps': num_steps // 10,
  }
  # Whole heads. Dense has one width more, so that its best loss lies within DeepSeekMoE's curve.
  narrow, *wide = (head_dim * heads for heads in (1, 2, 3, 4))
  return Scale(
    'long',
    settings,
    shape=(_LAYERS, d_model),
    head_dim=head_dim,
    widths=_widths((narrow, *wide), (narrow, *wide[:-1])),
    rates=rates or {},
  )


def only_long(scale: Scale, study: str) -> None:
  """UserError at another scale, where what the study keeps equal would not be equal."""
  if scale.name != LONG.name:
    raise UserError(f'--scale={scale.name}: the study {study} has only the scale {LONG.name}')


# The shape and the rates that pilot_long.py chose. Variants that it did not compare have the rate
# of DeepSeekMoE, GShard and Switch; Dense of d 24 has that of d 48.
_RATES = dict.fromkeys(('dense', 'hash', 'dense_x16'), 1.2e-2)
_RATES_OF_WIDTHS = {'dense_d72': 6e-3, 'dense_d96': 3e-3, 'deepseek_moe_d24': 1.2e-2}
LONG = long_scale(48, 24, 2048, 3360, rates=_RATES | _RATES_OF_WIDTHS)
SCALES = {scale.name: scale for scale in (PROXY, LONG, PAPER)}
