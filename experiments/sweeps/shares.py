"""What of this machine each of several runs at a time gets: cores of its own, and GPUs of its own.

At proxy scale two runs on a core each train 1.5 times as many tokens a second as one on both, where
the cores have no bfloat16 units, and 1.1 times as many where they have.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Share:
  """Of one run. No cores: all of them."""

  cores: frozenset[int] = frozenset()
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def to_children(self) -> Iterator[dict[str, str]]:
    """What is started inside runs on these cores alone. Yields the environment to start it with."""
    before = os.sched_getaffinity(0) if self.cores else None
    try:
      if self.cores:
        os.sched_setaffinity(0, self.cores)  # of this thread, which a child inherits
      yield {**os.environ, **self.environment}
    finally:
      if before:
        os.sched_setaffinity(0, before)


WHOLE = Share()


def deal(parallel: int) -> list[Share]:
  """As many shares, as equal as can be. UserError if there are NVIDIA GPUs, but fewer.

  One share is the whole machine. More shares than cores have all cores each;
  macOS pins no process to a core.
  """
  cores, gpus = _cores(), _gpus()
  if gpus and parallel > len(gpus):
    raise UserError(
      f'--parallel={parallel}: a run takes at least one GPU, '
      f'and there are {len(gpus)} here (JAX_PLATFORMS=cpu: none)'
    )
  if parallel == 1:
    return [WHOLE]
  of_cores = (
    [frozenset(part) for part in _parts(cores, parallel)]
    if parallel <= len(cores)
    else [frozenset()] * parallel
  )
  of_gpus = [
    {'CUDA_VISIBLE_DEVICES': ','.join(part)} if part else {} for part in _parts(gpus, parallel)
  ]
  return [Share(*each) for each in zip(of_cores, of_gpus, strict=True)]


def _parts(things: Sequence, count: int) -> list[Sequence]:
  """Neighbours together: they share a cache, or a link."""
  bounds = [round(len(things) * i / count) for i in range(count + 1)]
  return [things[start:end] for start, end in itertools.pairwise(bounds)]


def _cores() -> list[int]:
  """In the order of sockets and cores: the two threads of a core, often numbered apart,
  are neighbours.
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
  except (OSError, ValueError):  # not told: by number
    return 0


def _gpus() -> list[str]:
  """NVIDIA's, that jax would take; found without starting it, which would take them all."""
  plugins = [plugin.name for plugin in importlib.metadata.entry_points(group='jax_plugins')]
  if os.environ.get('JAX_PLATFORMS') == 'cpu' or not any('cuda' in name for name in plugins):
    return []
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:  # CUDA takes those before the first that it does not know
    return list(
      itertools.takewhile(lambda name: re.fullmatch(r'\d+|(GPU|MIG)-.+', name), visible.split(','))
    )
  # Device files may be numbered with gaps, as in a container; CUDA counts from 0.
  return [
    str(i)
    for i in range(sum(1 for path in Path('/dev').glob('nvidia*') if path.name[6:].isdigit()))
  ]
