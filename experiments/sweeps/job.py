"""A job: one config and seed, what it starts from, where it is trained, how far it has got."""

import dataclasses
from pathlib import Path

from experiments.studies.common import Run
from experiments.sweeps import jsonl, texts
from moe import config as moe_config
from moe.config import Config
from moe.errors import UserError

INIT_FROM, _TOKENIZER = 'train.init_from', 'data.tokenizer'
TRAINABLE, EXPERTS = 'finetune.trainable', 'finetune.experts'
# What a run has only because of its start: nothing that is made before it, or for it, has these.
_OF_THE_START = (INIT_FROM, TRAINABLE, EXPERTS)
_LOGGED: jsonl.Shape = {
  'step': int,
  'loss': jsonl.NUMBER_OR_NULL,
  'tokens_per_second': jsonl.NUMBER,
  'held_out_loss': jsonl.NUMBER_OR_NULL,
  'bad_streak': int,
}


@dataclasses.dataclass(frozen=True)
class Origin:
  """The job whose last checkpoint another job's weights start from.
  `upcycle`: how the weights are upcycled, '' to take them unchanged. `experts`: how the experts to
  train are chosen, '' to train all parameters.
  """

  job: 'Job'
  upcycle: str = ''
  experts: str = ''

  @property
  def workdir(self) -> Path:
    return self.job.workdir

  @property
  def is_trained(self) -> bool:
    return self.job.trained

  @property
  def name(self) -> str:
    """Names the origin by its settings: the same in every folder of runs and for every seed."""
    return f'{self.upcycle or "weights"} of {self.job.config_hash}'

  @property
  def tokenizer(self) -> Path:
    """The tokenizer of the origin's text."""
    return self.job.data_dir / 'tokenizer.model'

  def has_other_text(self, config: Config) -> bool:
    """Whether the origin was trained on other text than a run of this config."""
    theirs, ours = texts.settings(flat(self.job.config)), texts.settings(flat(config))
    return {**theirs, 'tokenizer': ''} != {**ours, 'tokenizer': ''}

  def named(self, config: Config) -> dict[str, object]:
    """The keys by which a run of this config names files of the origin, with the origin's settings
    in place of the paths.
    """
    named = {INIT_FROM: self.name}
    if self.experts:
      named[EXPERTS] = f'by {self.experts} of {self.job.config_hash}'
    if config.data.tokenizer == str(self.tokenizer):
      named[_TOKENIZER] = f'of {texts.digest(texts.settings(self.job.values))}'
    return named


@dataclasses.dataclass(frozen=True)
class Job:
  """One config and seed, trained once for all `runs` of the study that have this config."""

  runs: tuple[Run, ...]
  seed: int
  config: Config
  config_hash: str
  flags: tuple[str, ...]  # for every program that takes a config
  workdir: Path
  origin: Origin | None = None  # what has to be trained before it

  @property
  def label(self) -> str:
    return f'{" = ".join(run.name for run in self.runs)}, seed {self.seed}'

  @property
  def data_dir(self) -> Path:
    return Path(self.config.data.dir)

  @property
  def values(self) -> dict[str, object]:
    """Every key with its value. A run that the weights start from is named by its settings, not by
    its path.
    """
    values = flat(self.config)
    return values | self.origin.named(self.config) if self.origin else values

  @property
  def converted_config(self) -> Config:
    """The config that launch.convert makes for this job. UserError if it contradicts itself."""
    values = flat(self.config) | {key: moe_config.KEYS[key].default for key in _OF_THE_START}
    return moe_config.from_config_dict(moe_config.unflatten(values))

  @property
  def is_transfer(self) -> bool:
    """Whether it trains another run's weights on other text."""
    return self.origin is not None and self.origin.has_other_text(self.config)

  @property
  def is_ready(self) -> bool:
    """Whether nothing has to be trained before it."""
    return self.origin is None or self.begun or self.origin.is_trained

  @property
  def begun(self) -> bool:
    """Whether it has a checkpoint of its own, and needs no other run's."""
    return (self.workdir / 'checkpoints').is_dir()

  @property
  def preparations(self) -> list[str]:
    """The programs that must still make what training needs from the run that it starts from."""
    if self.origin is None or self.begun:
      return []
    converts = self.origin.upcycle and not Path(self.config.train.init_from).is_dir()
    selects = self.origin.experts and not Path(self.config.finetune.experts).is_file()
    return ['convert'] * bool(converts) + ['select_experts'] * bool(selects)

  @property
  def num_steps(self) -> int:
    return self.config.train.num_steps

  @property
  def trained(self) -> bool:
    """Whether its last checkpoint is there: one rename makes it appear, so it is whole."""
    return (self.workdir / 'checkpoints' / str(self.num_steps)).is_dir()

  @property
  def diverged(self) -> bool:
    """Whether training has given up: more steps in a row than train.max_bad_steps were
    not finite (moe/train.py).

    False if metrics.jsonl is damaged: training, started again, then tells what is wrong with it,
    and the other runs go on.
    """
    try:
      logged = self.metrics()
    except UserError:
      return False
    return bool(logged) and logged[-1].get('bad_streak', 0) > self.config.train.max_bad_steps

  @property
  def ended(self) -> bool:
    """Whether there is nothing more to train: the same config would diverge the same way again."""
    return self.trained or self.diverged

  def arguments(self, program: str) -> list[str]:
    """What follows `python` to start a program of launch for this job."""
    flags = {
      'train': self._train,
      'prepare_data': self._prepare_data,
      'convert': self._convert,
      'select_experts': self._select_experts,
    }[program]
    return ['-m', f'launch.{program}', *flags()]

  def _train(self):
    return [*self.flags, f'--workdir={self.workdir}']

  def _prepare_data(self):
    return [*self._flags_of_text(), f'--out={self.data_dir}']

  def _convert(self):
    return [
      *self._flags_of_text(),
      f'--workdir={self.config.train.init_from}',
      f'--upcycle={self.origin.workdir}',
      f'--router={self.origin.upcycle}',
      f'--seed={self.seed}',
    ]

  def _select_experts(self):
    return [
      f'--workdir={self.config.train.init_from}',
      f'--out={self.config.finetune.experts}',
      f'--by={self.origin.experts}',
      f'--seed={self.seed}',
      f'--sources={self.config.data.sources}',
      f'--chat={self.config.data.format == "chat"}'.lower(),
    ]

  def _flags_of_text(self):
    """The flags without those that name the run it starts from, which may not be there yet."""
    of_the_start = tuple(f'--config.{key}=' for key in _OF_THE_START)
    return [flag for flag in self.flags if not (self.origin and flag.startswith(of_the_start))]

  def metrics(self) -> list[dict]:
    """The complete lines of metrics.jsonl. UserError for a damaged one."""
    return logged(self.workdir)


def flat(config: Config) -> dict[str, object]:
  """Every key of a config, dotted, with its value."""
  return moe_config.flatten(config.to_dict())


def logged(workdir: Path) -> list[dict]:
  """The complete lines of a run's metrics.jsonl. UserError for a damaged one."""
  return jsonl.read(workdir / 'metrics.jsonl', _LOGGED, ('step', 'loss'), growing=True)
