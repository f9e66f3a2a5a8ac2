"""The state that a run starts with: what the source provides, read into the run's shardings, and
the rest, as in any new run.
"""

from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from moe.config import Config
from moe.errors import UserError
from moe.finetune.adapters import merged
from moe.parallel import processes
from moe.storage import checksums, partial
from moe.storage.reading import attempt, read_items
from moe.train_step import TrainState, init_state
from moe.warm_start.find import newest
from moe.warm_start.source import (
  Source,
  adapters_of,
  in_path,
  leaves_taken,
  log_error,
  parameters,
  parse,
)


def start_from(
  source: Source, config: Config, shardings: Callable
) -> tuple[Source, TrainState, dict | None]:
  """(the source, the state before step 0, the data's state or None: from its beginning).

  If the source's arrays turn out to be damaged and no step was named, an older checkpoint becomes
  the source. `shardings`: TrainState of shapes → TrainState of shardings. UserError if none can be
  read.
  """
  wanted = parse(config.train.init_from)[1]
  while True:
    read, fault = _start(source, config, shardings)
    if not fault:
      return source, *read
    message = f'train.init_from: step {source.step} in {source.directory} is unreadable: {fault}'
    if wanted is not None:
      raise UserError(message)
    log_error(message)
    source = newest(config, source.directory, None, below=source.step)


def in_words(source: Source, config: Config) -> list[str]:
  """Lines on what a run has taken from its source."""
  ours = parameters(config)
  taken = [name for name in source.stored if name in ours and name not in source.new]
  also = ['optimizer state'] * config.train.init_optimizer
  also += ['place in the data'] * config.train.init_data
  told = [f'warm start from {source}: {", ".join([f"{len(taken)} parameters", *also])}']
  if source.new:
    told.append(f'initialised anew: {", ".join(sorted(map(in_path, source.new)))}')
  if merged_in := adapters_of(source.config):
    told.append(f'its {len(merged_in) // 2} adapters are merged into their matrices')
  if left := sorted(source.stored.keys() - ours.keys()):
    told.append(f'left out: {", ".join(map(in_path, left))}')
  for kind in sorted({str(source.stored[n].dtype) for n in taken}):
    into = {
      str(ours[n].dtype)
      for n in taken
      if str(source.stored[n].dtype) == kind and str(ours[n].dtype) != kind
    }
    told += [f'parameters stored in {kind} are cast to {each}' for each in sorted(into)]
  return told


def _start(source, config, shardings):
  """((state, data's state), '') or (None, why the source cannot be read), in every process."""
  shapes = jax.eval_shape(lambda: init_state(config))
  where = partial.named(shardings(shapes))
  taken = leaves_taken(shapes, source.new, config.train.init_optimizer)
  of_item = {'params': lambda name: where['params', *name], 'training': lambda name: where[name]}

  everywhere = NamedSharding(next(iter(where.values())).mesh, PartitionSpec())

  def read_all():
    wanted = {item: {name: of_item[item](name) for name in taken[item]} for item in taken}
    wanted['params'] |= dict.fromkeys(adapters_of(source.config), everywhere)
    found = {item: partial.read(source.path, item, names) for item, names in wanted.items()}
    return found, _read_place(source) if config.train.init_data else None

  read, fault = processes.together(lambda: attempt(read_all))
  if fault := processes.first_told(fault):
    return None, fault
  found, place = read
  # All have read their parts: now checksums can be computed, which need every process.
  fault = ''
  for item, arrays in found.items():
    fault = fault or checksums.difference(
      _like_saved(shapes, item, arrays), source.small.checksums.get(item, {})
    )
  if fault := processes.first_told(fault):
    return None, fault
  params = flatten_dict(merged(source.config, unflatten_dict(found['params'])))
  leaves = {('params', *name): x for name, x in params.items()} | found['training']
  return (_with_the_rest(leaves, shapes, config, where), place), ''


def _read_place(source):
  state = read_items(source.path, data=ocp.args.JsonRestore())['data']
  if checksums.of_json(state) != source.small.checksums['data']:
    raise ValueError('the state of the data iterator is not the one that was saved')
  return state


def _like_saved(shapes, item, arrays):
  """The arrays in the tree that they were saved in: its paths are the names of the checksums."""
  if item == 'params':
    return unflatten_dict(arrays)
  tree = {'optimizer_state': shapes.optimizer_state}
  return jax.tree_util.tree_map_with_path(lambda path, _: arrays.get(partial.name_of(path)), tree)


def _with_the_rest(leaves, shapes, config, where):
  """The state with these leaves, cast to its types; all others are as in a new run."""
  kinds = partial.named(shapes)
  rest = [name for name in kinds if name not in leaves]

  def init(seed):
    state = partial.named(init_state(config, seed))
    return {'/'.join(name): state[name] for name in rest}

  init = jax.jit(init, out_shardings={'/'.join(name): where[name] for name in rest})
  fresh = init(np.uint32(config.train.seed))
  for name in list(leaves):
    if leaves[name].dtype != kinds[name].dtype:
      # One by one: never are all in memory in both types.
      leaves[name] = leaves.pop(name).astype(kinds[name].dtype)
  fill = lambda path, _: leaves.get(
    partial.name_of(path), fresh.get('/'.join(partial.name_of(path)))
  )
  return jax.tree_util.tree_map_with_path(fill, shapes)
