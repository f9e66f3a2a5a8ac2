"""A study's runs as jobs: what each trains, where, and how far it has got.

RUNS/VARIANT-HASH/seedK is the folder of a config and a seed. The hash leaves out names, seeds and
all keys that change no step, so that several studies, and several runs of one study,
share what they have in common.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from experiments.studies import common
from experiments.studies.common import CHOICES, MEASURES, UPCYCLES, Run, Scale, Start
from experiments.sweeps import places, texts
from experiments.sweeps.job import EXPERTS, INIT_FROM, TRAINABLE, Job, Origin, flat
from experiments.sweeps.texts import digest
from moe import config as moe_config
from moe import intervention, keys
from moe.config import Config
from moe.errors import UserError
from moe.intervention import FIELDS

SEEDS = ('train.seed', 'data.seed')


@dataclasses.dataclass(frozen=True)
class Study:
  """A study module, loaded; its name is the file's.
  A module need not have analyse(), SOURCE and CLAIM, which report it, nor SEEDS and SCALE.
  """

  path: str
  sweep: Callable[[Scale], Sequence[Run]]
  analyse: Callable | None = None
  source: str = ''
  claim: str = ''
  # How many seeds every run has, by scale ('' is any scale), fixed in the file before any run
  # starts. Empty if the file does not say.
  seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
  # The name of the scale that it is run at unless another is asked for.
  scale: str = common.PROXY.name

  def seeds_at(self, scale: Scale) -> range:
    """The seeds of every run of the study at a scale."""
    return range(self.seeds.get(scale.name, self.seeds.get('', common.SEEDS)))

  @property
  def name(self) -> str:
    return Path(self.path).stem


def load(path: str) -> Study:
  """The study in a file, or one of this package by its name. UserError if there is none."""
  path = places.study(path)
  sweep = getattr(_module(path, '--sweep'), 'sweep', None)
  if not callable(sweep):
    raise UserError(
      f'--sweep={path} has no sweep(): a study is a file like experiments/studies/table1.py'
    )
  module = _module(path, '--sweep')
  source, claim = (getattr(module, name, '') for name in ('SOURCE', 'CLAIM'))
  if not isinstance(source, str) or not isinstance(claim, str):
    raise UserError(f'{path}: SOURCE and CLAIM must be strings, not {source!r} and {claim!r}')
  seeds = getattr(module, 'SEEDS', {})
  seeds = seeds if isinstance(seeds, dict) else {'': seeds}
  for each in seeds.values():
    if not isinstance(each, int) or each < 1:
      raise UserError(f'{path}: SEEDS must be a number of at least 1, not {each!r}')
  scale = getattr(module, 'SCALE', common.PROXY.name)
  for name in (scale, *(name for name in seeds if name)):
    if name not in common.SCALES:
      raise UserError(f'{path}: {name!r} is no scale: one of {", ".join(common.SCALES)}')
  return Study(path, sweep, getattr(module, 'analyse', None), source, claim, seeds, scale)


def runs(study: Study, scale: Scale) -> Sequence[Run]:
  """The runs that a study's sweep() returns. UserError unless they are runs with distinct names."""
  made = asked(study.path, lambda: study.sweep(scale))
  if not isinstance(made, Sequence) or not made or not all(isinstance(run, Run) for run in made):
    raise UserError(
      f'sweep() of the study {study.name} must return a list of Run (experiments/studies/common.py)'
    )
  for run in made:
    _check_run(run, study.name)
  names = [run.name for run in made]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise UserError(f'the study {study.name} has two runs named {twice[0]!r}')
  return made


def asked(path: str, function: Callable[[], object]) -> object:
  """What a function of a study's file returns. Whatever it raises becomes a UserError,
  one line with the file.
  """
  with _faults_of(path):
    return function()


def jobs(
  study: Study,
  scale: Scale,
  seeds: Sequence[int],
  overrides: Mapping[str, object],
  runs_folder: Path,
) -> list[Job]:
  """Every run of a study for every seed as a job, its config built and checked. Writes nothing.

  `overrides` change every run. UserError if a run is not possible, or if two have the same name.
  """
  if given := [key for key in SEEDS if key in overrides]:
    raise UserError(f'config.{given[0]} is set for every run by --seeds')
  merged: dict[Path, Job] = {}
  every = runs(study, scale)
  for seed in seeds:
    for run in every:
      try:
        job = _job(run, seed, overrides, runs_folder, merged.values())
      except UserError as error:
        raise UserError(f'run {run.name!r} of the study {study.name}: {error}') from error
      before = merged.get(job.workdir)
      merged[job.workdir] = dataclasses.replace(before, runs=(*before.runs, run)) if before else job
  return list(merged.values())


def named(study: Study, planned: Sequence[Job], names: Collection[str]) -> list[Job]:
  """The jobs of a study's runs with these names. UserError for an unknown name."""
  known = list(dict.fromkeys(run.name for job in planned for run in job.runs))
  if unknown := [name for name in names if name not in known]:
    raise UserError(f'the study {study.name} has no run {unknown[0]!r}: it has {", ".join(known)}')
  kept = [
    dataclasses.replace(job, runs=tuple(run for run in job.runs if run.name in names))
    for job in planned
  ]
  return [job for job in kept if job.runs]


def affects_result(key: str) -> bool:
  """Whether a dotted key has a part in a run's final held-out loss."""
  return moe_config.affects_training(key) or key == 'evaluation.context'


def config_hash(config: Config, origin: Origin | None = None) -> str:
  """8 hexadecimal digits that name everything that decides a run's final loss except its seed."""
  return digest(settings(config, origin))


def settings(config: Config, origin: Origin | None = None) -> dict[str, object]:
  """The keys that decide a run's final loss, except seeds, with values that differ from
  what runs did before there were keys.

  Keys have their first names, and only differences count, so that neither a new key nor a new
  name of one changes the hash of an earlier run.
  """
  changed = moe_config.differences(_before(), config.to_dict())
  found = {
    moe_config.first_name(key): new
    for key, (_, new) in changed.items()
    if affects_result(key) and key not in SEEDS
  }
  return found | origin.named(config) if origin else found


def _job(run, seed, overrides, runs_folder, earlier):
  file, colon, named = run.config.partition(':')
  config_file = f'{places.located(file)}{colon}{named}'
  config_dict = _config_dict(config_file)
  own = moe_config.flatten(config_dict.to_dict())
  config_dict = _changed(config_dict, {**run.overrides, **overrides, **dict.fromkeys(SEEDS, seed)})
  if run.start and run.start.experts:
    if config_dict.finetune.experts:
      raise UserError(
        f'{EXPERTS}={config_dict.finetune.experts} is set for a run whose start chooses them'
      )
    # A placeholder: the file's path is known only when the run's folder is.
    chosen = {TRAINABLE: 'experts', EXPERTS: 'experts.json'}
    config_dict = _changed(config_dict, chosen)
  checked = _checked(run, config_dict)
  _check_can_be_measured(run, checked)
  origin = _origin(run, seed, checked, earlier)
  if origin and origin.has_other_text(checked):
    config_dict = _changed(config_dict, {'data.tokenizer': str(origin.tokenizer)})
    checked = _checked(run, config_dict)
  if not checked.data.dir:
    config_dict = _changed(
      config_dict, {'data.dir': str(runs_folder / f'data-{digest(texts.settings(flat(checked)))}')}
    )
    checked = _checked(run, config_dict)
  name = config_hash(checked, origin)
  variant = re.sub(r'[^\w.-]', '_', named or Path(file).stem)
  folders = [job.workdir.parent for job in earlier if job.config_hash == name]
  folders += sorted(runs_folder.glob(f'*-{name}'))  # of other studies, under their variant's name
  workdir = (folders[0] if folders else runs_folder / f'{variant}-{name}') / f'seed{seed}'
  if origin:
    named = {INIT_FROM: str(workdir / 'start' if origin.upcycle else origin.workdir)}
    if origin.experts:
      named[EXPERTS] = str(workdir / 'experts.json')
    checked = moe_config.from_config_dict(_changed(config_dict, named))
  # The values as moe.config has made them: 3 given for a float is 3.0.
  now = flat(checked)
  flags = [
    f'--config={config_file}',
    *(f'--config.{key}={now[key]}' for key in sorted(now) if now[key] != own[key]),
  ]
  return Job((run,), seed, checked, name, tuple(flags), workdir, origin)


def _checked(run, config_dict):
  """The checked Config; with a start its train.init_from is empty until its path is known."""
  if run.start is None:
    return moe_config.from_config_dict(config_dict)
  if config_dict.train.init_from:
    raise UserError(f'{INIT_FROM}={config_dict.train.init_from} is set for a run that has a start')
  # Other keys may need train.init_from to be set.
  made = moe_config.from_config_dict(_changed(config_dict, {INIT_FROM: run.start.run}))
  return dataclasses.replace(made, train=dataclasses.replace(made.train, init_from=''))


def _origin(run, seed, config, earlier):
  """What a run starts from; None without a start. UserError unless that is an earlier run with the
  same vocabulary and, if it is upcycled, on the same text.
  """
  if run.start is None:
    return None
  of = [job for job in earlier if job.seed == seed and run.start.run in (r.name for r in job.runs)]
  if not of:
    raise UserError(f'it starts from the run {run.start.run!r}, which is not listed before it')
  origin, theirs = Origin(of[0], run.start.upcycle, run.start.experts), of[0].config
  if config.model.vocab_size != theirs.model.vocab_size:
    raise UserError(f'it starts from the run {run.start.run!r}, of another model.vocab_size')
  if not origin.has_other_text(config):
    if config.data.dir not in ('', theirs.data.dir):
      raise UserError(
        f'it starts from the run {run.start.run!r}, of the same text in another data.dir'
      )
  elif run.start.upcycle:
    raise UserError(f'it is upcycled from the run {run.start.run!r}, of other text or vocabulary')
  elif config.data.tokenizer:
    raise UserError(
      f'data.tokenizer={config.data.tokenizer} is set for a run that has that of {run.start.run!r}'
    )
  return origin


def _check_run(run, study):
  """UserError, before anything is trained, if a run's fields are wrong."""
  if not isinstance(run.name, str) or not run.name.strip() or not run.name.isprintable():
    raise UserError(
      f'a run of the study {study} is named {run.name!r}: a name is one line of printable text'
    )
  where = f'run {run.name!r} of the study {study}'
  if not isinstance(run.config, str):
    raise UserError(f'{where}: config must be FILE.py[:VARIANT], not {run.config!r}')
  if not isinstance(run.overrides, Mapping) or not all(
    isinstance(key, str) for key in run.overrides
  ):
    raise UserError(f'{where}: overrides must be values by dotted key, not {run.overrides!r}')
  if not isinstance(run.start, Start | None):
    raise UserError(f'{where}: start must be a Start, not {run.start!r}')
  for name, known in (('upcycle', UPCYCLES), ('experts', CHOICES)) if run.start else ():
    if (value := getattr(run.start, name)) not in known:
      raise UserError(
        f'{where}: start.{name} must be one of {", ".join(map(repr, known))}, not {value!r}'
      )
  _check_evaluations(run.evaluations, where)
  for name in run.measures:
    if name not in MEASURES:
      raise UserError(f'{where}: there is no measure {name!r}, but {", ".join(MEASURES)}')


def _check_evaluations(evaluations, where):
  """UserError now: a misspelt keyword would otherwise be found only after training, in scoring."""
  if not isinstance(evaluations, Mapping):
    raise UserError(f'{where}: evaluations must be interventions by name, not {evaluations!r}')
  for name, changes in evaluations.items():
    if not isinstance(name, str) or not isinstance(changes, Mapping):
      raise UserError(
        f'{where}: the evaluation {name!r} must be a name with keyword arguments, not {changes!r}'
      )
    if unknown := sorted(map(str, changes.keys() - set(FIELDS))):
      raise UserError(
        f'{where}: the evaluation {name!r} has no {unknown[0]!r}: it takes {", ".join(FIELDS)}'
      )
    try:
      json.dumps(dict(changes), allow_nan=False)
    except (TypeError, ValueError) as error:
      raise UserError(f'{where}: the evaluation {name!r} is no plain JSON: {error}') from error


def _check_can_be_measured(run, config):
  """UserError now, rather than after training, if the run cannot be scored as it asks."""
  for name, changes in run.evaluations.items():
    try:
      intervention.check(config, intervention.Intervention(**changes))
    except UserError as error:
      raise UserError(f'the evaluation {name!r}: {error}') from error
  alike = max(config.moe.wide_experts, config.moe.num_experts - config.moe.wide_experts)
  if 'specialisation' in run.measures and not (config.has_routed_experts and alike > 1):
    raise UserError("the measure 'specialisation' needs two routed experts of one width")
  if 'shared_gate' in run.measures and not config.moe.shared_gate:
    raise UserError("the measure 'shared_gate' needs moe.shared_gate=True")


def _changed(config_dict, values):
  if unknown := values.keys() - set(moe_config.keys()):
    raise moe_config.unknown_key(min(unknown))
  for key, value in values.items():
    # ConfigDict would turn True into 1.0.
    if isinstance(value, bool):
      keys.checked(key, moe_config.KEYS[key], value)
  changed = config_dict.copy_and_resolve_references()
  # ConfigDict's TypeError would name no key; moe.config checks the types later, and names it.
  with changed.ignore_type():
    changed.update_from_flattened_dict(values)
  return changed


@functools.cache
def _before() -> dict:
  """The config of what runs did before there were keys. Keys that only change rounding have today's
  default: a run with another rounding is the same run, as it is on another kind of machine.
  """
  before = moe_config.flatten(moe_config.from_stored({}, 'a config of no keys').to_dict())
  now = moe_config.flatten(moe_config.defaults().to_dict())
  return moe_config.unflatten(
    {key: value if moe_config.must_stay(key) else now[key] for key, value in before.items()}
  )


def _config_dict(spec: str) -> ConfigDict:
  """FILE.py[:VARIANT] → its config."""
  path, colon, variant = spec.partition(':')
  get_config = getattr(_module(path, 'config'), 'get_config', None)
  if not callable(get_config):
    raise UserError(f'config file {path!r} has no get_config()')
  with _faults_of(path):
    return get_config(variant) if colon else get_config()


@functools.cache
def _module(path: str, what: str) -> ModuleType:
  """A Python file as a module. UserError, one line, whatever is wrong with it."""
  if not Path(path).is_file() or not path.endswith('.py'):
    raise UserError(f'there is no Python file {path!r} ({what})')
  spec = importlib.util.spec_from_file_location(f'loaded_{Path(path).stem}', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # the module's dataclasses look it up
  with _faults_of(path):
    spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def _faults_of(path: str) -> Iterator[None]:
  """Turns whatever the code of a study or config file raises into a UserError, one line that names
  the file.
  """
  try:
    yield
  except UserError:
    raise
  except SyntaxError as error:
    raise UserError(f'{error.filename}, line {error.lineno}: {error.msg}') from error
  except (Exception, SystemExit) as error:  # any code may be in it
    raise UserError(f'{path}: {type(error).__name__}: {error}') from error


def corpora_needed(planned: Sequence[Job]) -> list[str]:
  """The folders of common.CORPORA that lack a file needed to prepare a job's data."""
  files = [
    source.partition('=')[2]
    for job in planned
    if not prepared(job)
    for sources in (job.config.data.sources, job.config.data.validation_sources)
    for source in sources.split(';')
  ]
  missing = [file for file in files if not Path(file).exists()]
  return [
    folder for folder in common.CORPORA if any(file.startswith(f'{folder}/') for file in missing)
  ]


def prepared(job: Job) -> bool:
  return (job.data_dir / 'metadata.json').exists()
