"""Checks that a checkpoint fits the run that is to start from it, and names what does not."""

import dataclasses
import fnmatch
import os
from collections import defaultdict

import jax
from etils import epath

from moe import config as moe_config
from moe.config import Config, OpsConfig, from_stored
from moe.data.tokenizers import open_tokenizer
from moe.errors import UserError
from moe.storage import must_stay
from moe.storage.partial import Name
from moe.storage.small_items import SmallItems
from moe.train_step import init_state
from moe.warm_start.source import (
  Source,
  adapters_of,
  in_path,
  is_of_any_vocabulary,
  leaves_taken,
  of_the_vocabulary,
  parameters,
)

# The keys that a place in the data depends on: with another value it is another place.
_OF_THE_PLACE = (
  *('data.format', 'data.seed', 'data.seq_len', 'data.batch_size', 'data.reset_at_documents'),
  'data.too_long',
)


def fitting(
  config: Config,
  directory: epath.Path,
  step: int,
  small: SmallItems,
  stored: dict[Name, jax.ShapeDtypeStruct],
  training: dict[Name, jax.ShapeDtypeStruct],
) -> Source:
  """The Source, from what a checkpoint holds: `stored` are its parameters, `training` the arrays of
  its item of that name. UserError, one line, lists all mismatches of the first kind found.
  """
  where = f'train.init_from={config.train.init_from}: step {step}'
  theirs = dataclasses.replace(
    from_stored(small.config, f'{directory}/checkpoints/{step}/config'), ops=OpsConfig('auto')
  )
  stored = _without_adapters(stored, theirs)
  if config.train.init_data and 'data' not in small.checksums:
    raise UserError(
      f'train.init_data: {where} holds weights only, without a place in the data: leave it out'
    )
  if config.train.init_optimizer and not training:
    raise UserError(
      f'train.init_optimizer: {where} holds weights only, without optimizer state: leave it out'
    )
  new = _new(config, theirs, stored, where)
  source = Source(directory, step, small, stored, theirs, new)
  if config.train.init_optimizer:
    _check_state(config, training, new, where)
  _check_tokenizer(config, source, where)
  return source


def check(config: Config, theirs: Config, where: str) -> None:
  """Raises UserError unless a run of `config` can start from what a run of `theirs` will save:
  parameters, and, if they are asked for, optimizer and place in the data.
  `where`: what messages call `theirs`. Starts no device.
  """
  _new(config, theirs, _without_adapters(parameters(theirs), theirs), where)


def _without_adapters(stored, theirs):
  """The parameters that a run of `theirs` hands on: its adapters are merged into them."""
  adapters = adapters_of(theirs)
  return {name: x for name, x in stored.items() if name not in adapters}


def _new(config, theirs, stored, where) -> frozenset[Name]:
  """The parameters that are initialised anew. UserError unless all else fits."""
  skipped = _skipped(config, stored)
  _check_shapes(config, theirs, stored, skipped, where)
  new = frozenset(skipped & parameters(config).keys() | adapters_of(config))
  if config.train.init_optimizer:
    _check_optimizer(config, theirs, where)
  if config.train.init_data:
    _check_place(config, theirs, where)
  return new


def _skipped(config, stored):
  """The parameters, of either run, that train.init_skip matches."""
  both, skipped = stored.keys() | parameters(config).keys(), set()
  for pattern in config.train.init_skip:
    found = {name for name in both if fnmatch.fnmatchcase(in_path(name), pattern)}
    if not found:
      raise UserError(
        f'train.init_skip: {pattern!r} matches no parameter: there are '
        f'{", ".join(sorted(map(in_path, both)))}'
      )
    skipped |= found
  if not stored.keys() & parameters(config).keys() - skipped:
    raise UserError(
      f'train.init_skip={config.train.init_skip!r} leaves nothing to take from '
      f'train.init_from={config.train.init_from}'
    )
  return skipped


def _check_shapes(config, theirs, stored, skipped, where):
  ours = {name: x.shape for name, x in parameters(config).items()}
  there = {name: x.shape for name, x in stored.items()}
  different = sorted(
    name for name in ours.keys() | there.keys() if ours.get(name) != there.get(name)
  )
  different = [name for name in different if name not in skipped]
  _check_widths(config, theirs, stored, skipped, where)
  if not different:
    return
  causes = _causes(theirs, config)
  groups = defaultdict(list)
  for name in different:
    shapes = f'{in_path(name)} {there.get(name, "absent")} there, {ours.get(name, "absent")} here'
    groups[', '.join(key for key, names in causes.items() if name in names)].append(shapes)
  listed = '; '.join(
    f'{cause}: {", ".join(w)}' if cause else ', '.join(w) for cause, w in groups.items()
  )
  raise UserError(
    f'{where} has other parameters than this config: {listed}; set those keys as they are there, '
    'or list in train.init_skip what is to be initialised anew'
  )


def _check_widths(config, theirs, stored, skipped, where):
  """Raises UserError if the experts' widths differ though their arrays have equal shapes: a shape
  tells only how many units all experts have together.
  """
  ours, there = config.moe.units_of_experts, theirs.moe.units_of_experts
  taken = [name for name in stored.keys() - skipped if 'experts' in name[:-1]]
  if taken and ours != there and sum(ours) == sum(there):
    raise UserError(
      f'{where} has experts of other widths than this config: moe.wide_experts='
      f'{theirs.moe.wide_experts} and moe.wide_factor={theirs.moe.wide_factor} there, '
      f'{config.moe.wide_experts} and {config.moe.wide_factor} here; set those keys as they are '
      'there, or list in '
      "train.init_skip '*/experts/*', to initialise them anew"
    )


def _causes(theirs, ours):
  """{'KEY VALUE there, VALUE here': the parameters whose shapes change with that key alone}."""
  causes, shapes = {}, _shapes(theirs)
  differing = moe_config.differences(theirs.to_dict(), ours.to_dict())
  for key, (_, here) in differing.items():
    section, _, name = key.partition('.')
    if section not in ('model', 'moe'):
      continue
    one = dataclasses.replace(getattr(theirs, section), **{name: here})
    try:
      changed = _shapes(dataclasses.replace(theirs, **{section: one}))
    except Exception:  # by itself the value may contradict the others
      continue
    names = {n for n in shapes.keys() | changed.keys() if shapes.get(n) != changed.get(n)}
    if names:
      causes[moe_config.listed(differing, [key], 'here')] = names
  return causes


def _check_optimizer(config, theirs, where):
  there, here = theirs.optimizer.name, config.optimizer.name
  if there != here:
    raise UserError(
      f'train.init_optimizer: {where} was trained with optimizer.name={there}, this is {here}: '
      'leave it out, or use the same optimizer'
    )
  if theirs.finetune != config.finetune:
    changed = moe_config.differences(theirs.to_dict(), config.to_dict())
    of_them = [key for key in changed if key.startswith('finetune.')]
    listed = moe_config.listed(changed, of_them, 'here')
    raise UserError(
      f'train.init_optimizer: {where} has the state of other parameters: {listed}: leave it out'
    )


def _check_state(config, training, new, where):
  here, state = config.optimizer.name, jax.eval_shape(lambda: init_state(config))
  for name, x in leaves_taken(state, new, True)['training'].items():
    if name not in training or training[name].shape != x.shape:
      found = training[name].shape if name in training else 'nothing'
      raise UserError(
        f'train.init_optimizer: {where} has {found} where optimizer.name={here} keeps '
        f'{in_path(name)} {x.shape}: leave it out'
      )


def _check_place(config, theirs, where):
  changed = moe_config.differences(theirs.to_dict(), config.to_dict())
  fixed = [key for key in _OF_THE_PLACE if key in changed]
  if not must_stay.same_weights(theirs.data.sources, config.data.sources):
    fixed.append('data.sources')
  if fixed:
    listed = moe_config.listed(changed, fixed, 'here')
    raise UserError(
      f'train.init_data: {where} has its place in other batches: {listed}; use those values, or '
      'leave train.init_data out'
    )


def _check_tokenizer(config, source, where):
  if is_of_any_vocabulary(config, source.new):
    return
  if not source.small.tokenizer:
    if not config.data.tokenizer:
      raise UserError(f'{where} has no tokenizer: give data.tokenizer, the one of its weights')
    return
  if not config.data.tokenizer:
    return
  there = source.small.open_tokenizer()
  if open_tokenizer(os.path.expanduser(config.data.tokenizer)).sha256 != there.sha256:
    names = ', '.join(sorted(in_path(name) for name in of_the_vocabulary(config)))
    raise UserError(
      f'{where} was trained with another tokenizer than data.tokenizer={config.data.tokenizer}: '
      f'every id would mean something else; leave data.tokenizer out, to use that of the source, '
      f'or list {names} in train.init_skip'
    )


def _shapes(config):
  return {name: x.shape for name, x in parameters(config).items()}
