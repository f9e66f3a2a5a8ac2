"""The process that has the device. It computes one case after another, as it is asked."""

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from experiments.benchmarks.device.records import failed


class Offer(NamedTuple):
  """What a worker sends first."""

  where: dict  # keys of every record: device, jax, commit
  parts: list[tuple[str, float, list[str]]]  # name, seconds, cases


class Answer(NamedTuple):
  records: list[dict]
  is_well: bool  # False: the device takes no further work from this process


def serve(connection: Connection, rounds: int, log: str) -> None:
  """Sends an `Offer`, then an `Answer` for every case asked for, until the other side is gone.

  What compilers and the device's driver print goes to the file `log`.
  """
  file = os.open(log, os.O_WRONLY | os.O_APPEND)
  os.dup2(file, 1), os.dup2(file, 2)
  from experiments.benchmarks.device import cases, sizes
  from moe.ops.implementation import platform

  parts = cases.parts(sizes.of_platform(platform()))
  offered = [(part.name, part.seconds, list(part.cases)) for part in parts]
  runs = {name: run for part in parts for name, run in part.cases.items()}
  connection.send(Offer(_where(), offered))
  while True:
    try:
      name = connection.recv()
    except EOFError:
      return
    connection.send(answer(name, runs[name], rounds))


def answer(name: str, run: Callable, rounds: int) -> Answer:
  """The case's records; one that says so if it fails."""
  try:
    made = run(rounds)
  except Exception as error:
    made = [failed(name, error)]
  return Answer(made, not any('failed' in each for each in made) or _is_well())


def _is_well():
  """Whether the device still computes: after an illegal access by a kernel all later calls of the
  process fail.
  """
  import jax
  import jax.numpy as jnp

  try:
    return float(jax.block_until_ready(jnp.ones(8).sum())) == 8
  except Exception:
    return False


def _where():
  import jax

  from moe.storage import provenance

  device, (commit, dirty) = jax.devices()[0], provenance.commit()
  kind = provenance.cpu() if device.platform == 'cpu' else device.device_kind
  return {
    'device': kind,
    'jax': jax.__version__,
    'commit': f'{commit}{", changed" if dirty else ""}' if commit else None,
  }
