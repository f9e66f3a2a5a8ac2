"""The share of this machine that each of several runs at a time gets: cores of its own, and GPUs or
a TPU chip of its own; or, of a GPU that several runs share, a part of its memory.

At proxy scale two runs on one core each train 1.5 times as many tokens a second as one run on both,
if the cores have no bfloat16 units, and 1.1 times as many if they have. Several seeds in one
program, by `vmap` of the training step, were tried instead: on one core five seeds of the long
scale's DeepSeekMoE take 2.3 times as long as one after another, and of Dense 1.1 times. Under
`vmap` an expert's tiles run as often as the seed with the most tiles needs.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Share:
  """The share of one run. Empty `cores` are all of them."""

  cores: frozenset[int] = frozenset()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def to_children(self) -> Iterator[dict[str, str]]:
    """Pins what is started inside to these cores. Yields the environment to start it with."""
    before = os.sched_getaffinity(0) if self.cores else None
    try:
      if self.cores:
        os.sched_setaffinity(0, self.cores)  # of this thread; children inherit it
      yield {**os.environ, **self.environment}
    finally:
      if before:
        os.sched_setaffinity(0, before)


WHOLE = Share()
# The part of a GPU's memory for all runs that share it; CUDA itself takes some for each.
_MEMORY = 0.9


def deal(parallel: int) -> list[Share]:
  """`parallel` shares, as equal as possible. UserError if there are TPU chips, but fewer.

  One share is the whole machine. If there are more shares than cores, each has all cores;
  macOS pins no process to a core.
  """
  if parallel == 1:
    return [WHOLE]
  cores = _cores()
  of_cores = (
    [frozenset(part) for part in _parts(cores, parallel)]
    if parallel <= len(cores)
    else [frozenset()] * parallel
  )
  return [Share(*each) for each in zip(of_cores, _of_accelerators(parallel), strict=True)]


def _of_accelerators(parallel) -> list[dict[str, str]]:
  """The environment that gives each process its accelerators."""
  if chips := _tpu_chips():
    if parallel > chips:
      raise UserError(
        f'--parallel={parallel}: a TPU chip takes one run, and there are {chips} here '
        '(JAX_PLATFORMS=cpu: none)'
      )
    return [_of_chip(number) for number in range(parallel)]
  gpus = _gpus()
  if parallel <= len(gpus) or not gpus:
    parts = _parts(gpus, parallel)
    return [{'CUDA_VISIBLE_DEVICES': ','.join(part)} if part else {} for part in parts]
  on = [gpus[run * len(gpus) // parallel] for run in range(parallel)]
  return [
    {
      'CUDA_VISIBLE_DEVICES': gpu,
      'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{_MEMORY / on.count(gpu):.3f}',
    }
    for gpu in on
  ]


def _of_chip(number: int) -> dict[str, str]:
  """The environment of a process by itself on one chip of this host."""
  port = str(8476 + number)
  return {
    'TPU_VISIBLE_CHIPS': str(number),
    'TPU_VISIBLE_DEVICES': str(number),  # its name in older runtimes
    'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
    'TPU_PROCESS_BOUNDS': '1,1,1',
    'TPU_MESH_CONTROLLER_ADDRESS': f'localhost:{port}',
    'TPU_MESH_CONTROLLER_PORT': port,
  }


def _parts(things: Sequence, count: int) -> list[Sequence]:
  """`count` parts of neighbours, which share a cache or a link."""
  bounds = [round(len(things) * i / count) for i in range(count + 1)]
  return [things[start:end] for start, end in itertools.pairwise(bounds)]


def _cores() -> list[int]:
  """This process's cores, in the order of sockets and cores: the two threads of a core,
  often numbered apart, are neighbours.
  """
  numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  return sorted(
    numbers,
    key=lambda number: [_topology(number, what) for what in ('physical_package_id', 'core_id')],
  )


def _topology(core: int, what: str) -> int:
  try:
    return int(
      Path(f'/sys/devices/system/cpu/cpu{core}/topology/{what}').read_text(encoding='utf-8')
    )
  except (OSError, ValueError):  # unknown: the order is by number
    return 0


def _tpu_chips() -> int:
  """How many TPU chips jax would take; starting jax to ask would take them all."""
  if os.environ.get('JAX_PLATFORMS') == 'cpu' or not importlib.util.find_spec('libtpu'):
    return 0
  numbered = lambda folder, name: [
    path for path in Path(folder).glob(f'{name}*') if path.name.removeprefix(name).isdigit()
  ]
  return len(numbered('/dev', 'accel') or numbered('/dev/vfio', ''))


def _gpus() -> list[str]:
  """The NVIDIA GPUs that jax would take; starting jax to ask would take them all."""
  plugins = [plugin.name for plugin in importlib.metadata.entry_points(group='jax_plugins')]
  if os.environ.get('JAX_PLATFORMS') == 'cpu' or not any('cuda' in name for name in plugins):
    return []
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:  # CUDA takes the names before the first that it does not know
    return list(
      itertools.takewhile(lambda name: re.fullmatch(r'\d+|(GPU|MIG)-.+', name), visible.split(','))
    )
  # Device files may be numbered with gaps, as in a container; CUDA counts from 0.
  return [
    str(i)
    for i in range(sum(1 for path in Path('/dev').glob('nvidia*') if path.name[6:].isdigit()))
  ]
