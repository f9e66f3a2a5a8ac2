"""Which meshes and rematerialisation are worth compiling, and the ranking of their plans."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

from moe.config import Config
from moe.errors import UserError, one_line
from moe.parallel import mesh as mesh_lib
from moe.planner import planner, report
from moe.planner.compile_step import bytes_of_state, laid_out
from moe.planner.machine import Machine, devices
from moe.train_step import TrainState, init_state

_REMAT = ('none', 'dots', 'moe', 'full')
_MOST_TENSOR = 4  # bounds the number of plans, which take minutes each


def candidates(config: Config, machine: Machine, devices: Sequence[jax.Device]) -> Iterator[Config]:
  """Yields variations of config.mesh and model.remat whose state and gradients fit on the machine.

  mesh.stage is the config's own, then 1. Each is tried with every data, fsdp and expert, and tensor
  up to 4. All else is the config's. UserError if the stages do not divide the devices, or if no
  variation is left; that names the most common obstacle.
  """
  shapes = jax.eval_shape(lambda: init_state(config))
  refusals, found = collections.Counter(), False
  for sizes in _layouts(config, machine.num_devices):
    changed = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))
    try:
      mesh = mesh_lib.make_mesh(changed, devices)
    except UserError as error:
      refusals[str(error)] += 1
      continue
    if _held_bytes(changed, mesh, shapes) > machine.chip.capacity:
      refusals['parameters, optimizer state and gradients alone exceed its memory'] += 1
      continue
    found = True
    for remat in _REMAT if config.moe.num_experts else ('none', 'dots', 'full'):
      yield dataclasses.replace(changed, model=dataclasses.replace(config.model, remat=remat))
  if not found:
    ((commonest, _),) = refusals.most_common(1)
    raise UserError(
      f'none of {refusals.total()} meshes of {machine.topology} is worth compiling, '
      f'such as: {commonest}'
    )


def plans(
  tried: Iterable[Config], plan: Callable[[Config], dict]
) -> Iterator[tuple[Config, dict | str]]:
  """Yields every config with its plan, or with the reason why it has none; the search goes on."""
  for config in tried:
    try:
      yield config, plan(config)
    except (UserError, jax.errors.JaxRuntimeError) as error:
      yield config, one_line(error)


def rank(records: list[dict]) -> list[dict]:
  """The plans that fit, then those that do not. Each group begins with the least step time without
  overlap; plans without a step time end it, by the bytes that are missing.
  """
  speed = lambda r: (
    not r['fits'],
    r.get('step_seconds_without_overlap', math.inf),
    r['over_bytes_per_device'],
  )
  return sorted(records, key=speed)


def searched(
  config: Config, target: Machine, most: int | None, tell: Callable[[str], None]
) -> list[dict]:
  """The plans of the first `most` candidates, or of all if it is None, the best first. `tell` gets
  each plan as soon as it is made.
  """
  tried = list(candidates(config, target, devices(target)))
  records = []
  found = plans(tried[:most], lambda changed: planner.plan(changed, target))
  for number, (changed, made) in enumerate(found, start=1):
    if isinstance(made, str):
      made = f'{changed.mesh}, remat {changed.model.remat}, cannot be planned: {made}'
    else:
      records.append(made)
      made = report.text(made)
    tell(f'{number} of {len(tried)}: {made}')
  return rank(records)


def _layouts(config, devices):
  for stage in _stages(config, devices):
    left = devices // stage
    for expert in _divisors(left, config.moe.num_units + 1) if config.moe.num_experts else [1]:
      for tensor in _divisors(left // expert, _MOST_TENSOR):
        for data in _divisors(left // expert // tensor):
          fsdp = left // expert // tensor // data
          yield {'stage': stage, 'data': data, 'fsdp': fsdp, 'expert': expert, 'tensor': tensor}


def _stages(config, devices):
  """The config's own number of stages, and 1. Others would need another number of microbatches."""
  given = config.mesh.stage
  if given == -1:
    given = mesh_lib.fill(config.mesh, devices)['stage']
  if devices % given:
    raise UserError(f'--search keeps mesh.stage={given}, which does not divide {devices} devices')
  return [1] if given == 1 else [given, 1]


def _divisors(number, most=math.inf):
  return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _held_bytes(config: Config, mesh: jax.sharding.Mesh, shapes: TrainState) -> int:
  """A device's parameters, optimizer state and gradients. Clipping needs all gradients at once,
  sharded as the parameters are.
  """
  state = bytes_of_state(laid_out(shapes, mesh, config))
  return 2 * state['parameters'] + state['optimizer_state']
