"""Which implementation of an op runs: the one enum, the one place that chooses,
the one place that knows the platform.

Every op's api.py has a dict IMPLEMENTATIONS, and `run` takes from it the one that is asked for.
`auto` takes the kernels of the platform at hand, and the next of `_PREFERRED` where they raise
`Unsupported`. Any other choice is taken as it is: where it cannot run, the error says why.

The platform at hand is the process's own, `jax.default_backend()`, unless a caller overrides it
with `compiling_for`, to compile for a machine that is not here or to run kernels in Pallas'
interpreter. The override holds while functions are traced, and is a part of jit's cache key
(`jax.make_user_context`): a function that was traced for one platform is traced again for another,
never taken from the cache.
"""

import contextlib
import enum
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from moe.errors import UserError


class Implementation(enum.StrEnum):
  """`auto` chooses by platform; any other choice is taken as it is and never falls back."""

  AUTO = 'auto'
  # Readable truth: O(E) in FLOPs where that is simpler.
  REFERENCE = 'reference'
  # Plain XLA, arranged for the platform at hand.
  XLA = 'xla'
  # Mosaic kernels.
  PALLAS_TPU = 'pallas_tpu'
  # Triton kernels.
  PALLAS_GPU = 'pallas_gpu'


class Unsupported(UserError, NotImplementedError):
  """The kernels asked for cannot run on this platform, or do not compute what was asked of them."""


class _Target(NamedTuple):
  platform: str
  interpret: Any  # of pl.pallas_call


# The platform of each kind of kernel.
_HOME = {Implementation.PALLAS_TPU: 'tpu', Implementation.PALLAS_GPU: 'gpu'}
# What `auto` tries in turn, without kernels of other platforms. Every op has all of these.
_PREFERRED = (Implementation.PALLAS_TPU, Implementation.PALLAS_GPU, Implementation.XLA)
_target = jax.make_user_context(default_value=None)
_log = logging.getLogger('moe.ops')


@contextlib.contextmanager
def compiling_for(platform: str, interpret: Any = False) -> Iterator[None]:
  """Makes ops traced inside choose as on `platform` ('cpu', 'tpu', 'gpu'), not as on this machine.

  interpret: True, or pltpu.InterpretParams, runs kernels on CPU.
  """
  with _target(_Target(platform, interpret)):
    yield


def platform() -> str:
  """The platform that ops are traced for: 'cpu', 'tpu' or 'gpu'."""
  target = _target.value
  return target.platform if target else jax.default_backend()


def interpret() -> Any:
  """The `interpret` argument of every pl.pallas_call."""
  target = _target.value
  return target.interpret if target else False


def check(requested: str) -> None:
  """Raises Unsupported if `requested` names kernels of another platform than the one at hand."""
  home = _HOME.get(Implementation(requested), platform())
  if home != platform():
    raise Unsupported(
      f'ops.implementation={requested} needs a {home}, this is a {platform()}: '
      'use auto, xla or reference'
    )


def run(op: str, implementations: Mapping[str, Callable], requested: str, *arguments: Any) -> Any:
  """The result of `op` for `arguments`, by the implementation that `requested` selects. Logs each
  selection once.

  Raises Unsupported if an explicit choice cannot run.
  """
  check(requested)
  here = platform()
  log = lambda what: _log_once(op, what, here, requested)
  *before, last = [Implementation(requested)]
  if requested == Implementation.AUTO:
    *before, last = (name for name in _PREFERRED if _HOME.get(name, here) == here)
  for name in before:
    try:
      result = implementations[name](*arguments)
    except Unsupported as reason:
      log(f'not {name} ({reason})')
    else:
      log(name)
      return result
  log(last)
  return implementations[last](*arguments)


@functools.cache
def _log_once(op, what, here, requested):
  _log.info('%s: %s on %s (ops.implementation=%s)', op, what, here, requested)
