"""Compiling for the device at hand, and timing there: warm-up, several calls in flight,
nothing fetched to the host.
"""

import time
from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmarks import timing

# Time and number of the calls in flight at once: the host's work then hides behind the device's.
_SECONDS = 0.02
_MOST = 100


def compiled(function: Callable, *arguments: Any, donated: tuple = ()) -> tuple[Callable, float]:
  """The program, and the seconds that it took to compile."""
  began = time.perf_counter()
  program = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
  return program, time.perf_counter() - began


def measure(run: Callable[[], Any], rounds: int) -> list[float]:
  """Seconds of a call, round by round; `run` returns what to wait for."""
  several, calls = _in_flight(run)
  seconds = []
  for _ in range(rounds):
    began = time.perf_counter()
    several()
    seconds.append((time.perf_counter() - began) / calls)
  return seconds


def compare(
  name: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, tokens: int
) -> dict:
  """`timing.compare` of calls in flight, as many on both sides; `ms` is the time of one of ours."""
  calls = min(_in_flight(run)[1] for run in (ours, theirs))
  sides = (_times(run, calls) for run in (ours, theirs))
  row = timing.compare(name, *sides, rounds, calls * tokens)
  return row | {'ms': 1e3 * tokens / row['tokens_per_second_median'][0]}


def _in_flight(run):
  """(a function that makes several calls and waits, how many)."""
  _times(run, 1)()
  began = time.perf_counter()
  _times(run, 1)()
  calls = max(1, min(_MOST, int(_SECONDS / (time.perf_counter() - began))))
  return _times(run, calls), calls


def _times(run, calls):
  def several():
    for _ in range(calls):
      last = run()
    jax.block_until_ready(last)

  return several
