"""Measures the memory that steps of proxy.py:deepseek_moe take on simulated devices, as the
compiler reports it and as the process grows.

  python -m tests.moe.parallel.memory DEVICES [--return] [KEY=VALUE …]

DEVICES lie along mesh.expert. KEY=VALUE changes the config, e.g. train.num_steps=40 instead of 10.
Prints one line of JSON, sizes in MiB. `accounting` is parameters and Adam's moments by
moe/accounting.py. `state` and `temporary` are those of the compiled step, on one device and on all.
`resident` is the process's memory when jax has started, has a state, has compiled the step, and
after every step, and its peak by then. Freed memory stays with the process, as in launch.train on
one device; with --return it goes back to the system, as in launch.train on several.
"""

import ast
import json
import sys
import time

import jax
import numpy as np

from experiments import proxy
from moe.accounting import account
from moe.config import Config, from_config_dict
from moe.host_memory import keep_freed_memory
from moe.metrics import machine
from moe.optimizer import hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated
from moe.parameters import shardings
from moe.planner.compile_step import bytes_of_state
from moe.train_step import init_state, jit_step, make_train_step
from tests.small import packed_batch


def measure(config: Config) -> dict:
  """Returns the sizes that the module's docstring lists, on all devices of this process."""
  devices, resident = jax.device_count(), {'started': _resident()}
  mesh = mesh_lib.make_mesh(config)
  with mesh_lib.use(mesh, config.mesh.zero):
    where = shardings(config, mesh, jax.eval_shape(lambda: init_state(config)))
    state = jax.jit(lambda: init_state(config), out_shardings=where)()
    batch = place_whole(packed_batch(config), mesh)
    numbers = jax.device_put(hyperparameters(config), replicated(mesh))
    jax.block_until_ready(state)
    resident['initialised'] = _resident()
    began = time.perf_counter()
    step = jit_step(make_train_step(config), mesh, state).lower(state, batch, numbers).compile()
    seconds = time.perf_counter() - began
    resident['compiled'] = _resident()
    resident['steps'] = []
    for _ in range(config.train.num_steps):
      state, _ = jax.block_until_ready(step(state, batch, numbers))
      resident['steps'].append(_resident())
  resident['peak'] = _mib(machine.memory()['memory_peak'])
  sizes = step.memory_analysis()
  return {
    'devices': devices,
    'accounting': _mib(12 * account(config).total_params),
    'state': _both(sum(bytes_of_state(state).values()), devices),
    'temporary': _both(sizes.temp_size_in_bytes, devices),
    'results beside the state': _both(
      sizes.output_size_in_bytes - sizes.alias_size_in_bytes, devices
    ),
    'resident': resident,
    'compiled in seconds': round(seconds),
  }


def _resident():
  return _mib(machine.memory()['memory_in_use'])


def _both(size, devices):
  return [_mib(size), _mib(size * devices)]


def _mib(size):
  return round(float(np.float64(size) / 2**20), 1)


def main(devices: str, *options: str) -> None:
  if '--return' not in options:
    keep_freed_memory()
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', int(devices))
  changes = {'mesh.data': '1', 'mesh.expert': devices, 'train.num_steps': '10'}
  changes |= dict(option.split('=', 1) for option in options if option != '--return')
  config = proxy.get_config('deepseek_moe')
  config.update_from_flattened_dict({k: ast.literal_eval(v) for k, v in changes.items()})
  print(json.dumps(measure(from_config_dict(config))))


if __name__ == '__main__':
  main(*sys.argv[1:])
