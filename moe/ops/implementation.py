"""Which implementation of an op runs: the one enum, the one place that chooses."""

import contextlib
import enum
import functools
import importlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import jax

from moe.errors import UserError


class Implementation(enum.StrEnum):
  """`auto` chooses by platform; any other choice is taken as it is and never falls back."""

  AUTO = 'auto'
  REFERENCE = 'reference'  # readable truth: O(E) in FLOPs where that is simpler
  XLA = 'xla'  # plain XLA, arranged for the platform at hand
  PALLAS_TPU = 'pallas_tpu'  # Mosaic kernels
  PALLAS_GPU = 'pallas_gpu'  # Triton kernels


class WrongPlatform(UserError, NotImplementedError):
  """A kernel was asked for on a platform that it cannot run on."""


class _Target(NamedTuple):
  platform: str
  interpret: Any  # of pl.pallas_call


_HOME = {
  Implementation.PALLAS_TPU: 'tpu',
  Implementation.PALLAS_GPU: 'gpu',
}  # the platform of each kind of kernel
_PREFERRED = (
  Implementation.PALLAS_TPU,
  Implementation.PALLAS_GPU,
  Implementation.XLA,
)  # every op has them all
_target: ContextVar[_Target | None] = ContextVar('target', default=None)
_log = logging.getLogger('moe.ops')


@contextlib.contextmanager
def compiling_for(platform: str, interpret: Any = False) -> Iterator[None]:
  """Ops traced inside choose as on `platform` ('cpu', 'tpu', 'gpu') whatever this machine has.

  For compiling ahead of time, and for tests: `interpret` (True, or pltpu.InterpretParams) runs kernels on CPU.
  It acts while tracing and is no part of jit's cache key: trace a function of your own inside.
  """
  token = _target.set(_Target(platform, interpret))
  try:
    yield
  finally:
    _target.reset(token)


def platform() -> str:
  """The platform that ops are traced for: 'cpu', 'tpu' or 'gpu'."""
  target = _target.get()
  return target.platform if target else jax.default_backend()


def interpret() -> Any:
  """The `interpret` argument of every pl.pallas_call."""
  target = _target.get()
  return target.interpret if target else False


def check(requested: str) -> None:
  """WrongPlatform where `requested` names kernels of another platform than the one at hand."""
  home = _HOME.get(Implementation(requested), platform())
  if home != platform():
    raise WrongPlatform(
      f'ops.implementation={requested} needs a {home}, this is a {platform()}: use auto, xla or reference'
    )


def choose(op: str, requested: str) -> Implementation:
  """Which implementation runs `op`; each answer is logged once. WrongPlatform as of `check`."""
  check(requested)
  requested, here = Implementation(requested), platform()
  chosen = requested
  if requested is Implementation.AUTO:
    chosen = next(i for i in _PREFERRED if _HOME.get(i, here) == here)
  _log_once(op, str(requested), str(chosen), here)
  return chosen


def module(op: str, requested: str) -> ModuleType:
  """The module `moe.ops.OP.IMPLEMENTATION` of `choose`, imported only now: Pallas is not needed everywhere."""
  return importlib.import_module(f'moe.ops.{op}.{choose(op, requested)}')


@functools.cache
def _log_once(op, requested, chosen, here):
  _log.info('%s: %s on %s (ops.implementation=%s)', op, chosen, here, requested)
