"""Reads a checkpoint that may be damaged, in one process alone, and quietly if it fails."""

import contextlib
import errno
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from etils import epath

from moe.errors import OF_A_SHARED_FOLDER, TryAgain, UserError, is_transient, one_line


def attempt(read: Callable) -> tuple[object, str]:
  """(what `read` returns, '') or (None, why it failed, in one line).
  TryAgain if the failure says nothing about the files, such as a shared folder that is away.

  A UserError goes through: it says more than that something is unreadable. After one failure, each
  read still under way prints a traceback straight to the process's stderr. So if `read` fails, all
  that was written there meanwhile is dropped.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  result, fault, transient = None, '', False
  with tempfile.TemporaryFile() as printed:
    os.dup2(printed.fileno(), 2)
    try:
      result = read()
    except UserError:
      raise
    # Orbax raises a different type for each way in which files can be damaged.
    except Exception as error:
      fault = one_line(error)
      # A failing disk returns EIO as long as it lives: what it cannot read is as good as damaged.
      transient = is_transient(error, OF_A_SHARED_FOLDER - {errno.EIO})
    finally:
      if fault:
        gc.collect()  # coroutines that nobody awaits any more complain when they are collected,
        time.sleep(0.3)  # and reads complain when they end
      os.dup2(stderr, 2)
      os.close(stderr)
    if not fault:
      printed.seek(0)
      sys.stderr.write(printed.read().decode(errors='replace'))
  if transient:
    raise TryAgain(f'a checkpoint cannot be read now: {fault}')
  return result, fault


def read_items(path: epath.Path, concurrent_gb: int | None = None, **items) -> dict:
  """Items of a checkpoint, read without any other process: if one fails, none waits for it.

  `path`: the step's folder. `items`: Orbax's restore arguments, by name. `concurrent_gb`: how many
  GB of arrays may be in transit to the devices at once.
  """
  own = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(),
    active_processes={jax.process_index()},
    barrier_sync_key_prefix=f'process{jax.process_index()}',
  )
  of_arrays = {
    name: ocp.PyTreeCheckpointHandler(
      restore_concurrent_gb=concurrent_gb, multiprocessing_options=own
    )
    for name, args in items.items()
    if isinstance(args, ocp.args.PyTreeRestore)
  }
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=own), **of_arrays
  )
  with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=own)) as checkpointer:
    # epath would put the current directory before a bucket's address.
    path = path if '://' in os.fspath(path) else path.absolute()
    return checkpointer.restore(path, ocp.args.Composite(**items))


def available_steps(workdir: str | os.PathLike) -> list[int]:
  """Steps with a complete checkpoint folder, ascending."""
  folder = epath.Path(workdir) / 'checkpoints'
  if '://' in os.fspath(folder):
    # For a bucket that cannot be read, glob raises an error; is_dir would return False.
    found = folder.glob('*')
  else:
    # No glob: brackets in the folder's own name would be patterns.
    found = folder.iterdir() if folder.is_dir() else ()
  return sorted(int(f.name) for f in found if f.name.isdigit() and f.is_dir())
