"""A checkpointer asks to try again after faults that pass by themselves, and not after others."""

import contextlib
import errno
import math
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moe import checkpoint
from moe.checkpoint import Checkpointer, available_steps
from moe.convert import parameters
from moe.errors import TryAgain, UserError
from moe.parallel.mesh import make_mesh
from moe.parameters import shardings
from moe.train_step import init_state
from tests.small import small_config, small_state

TOKENIZER = types.SimpleNamespace(to_bytes=lambda: b'x', tokenizer_config=b'')


def failing(error):
  def fail(*_, **__):
    raise error

  return fail


@pytest.mark.parametrize(
  'number, kind', [(errno.ESTALE, TryAgain), (errno.EIO, TryAgain), (errno.ENOSPC, UserError)]
)
def test_a_save(number, kind, tmp_path, monkeypatch):
  config = small_config()
  with contextlib.closing(Checkpointer(tmp_path, config, TOKENIZER)) as checkpointer:
    monkeypatch.setattr(
      ocp.CheckpointManager, 'save', failing(OSError(number, os.strerror(number)))
    )
    with pytest.raises(UserError, match=os.strerror(number)) as error:
      checkpointer.save(1, small_state(config), {}, None)
  assert type(error.value) is kind


@pytest.mark.parametrize(
  'number, kind, message',
  [
    (errno.ESTALE, TryAgain, 'cannot be read now'),
    (errno.EIO, UserError, 'no checkpoint in .* can be read'),
  ],
)
def test_a_restore_sets_nothing_aside_for_a_fault_that_goes_away(
  number, kind, message, tmp_path, monkeypatch
):
  config = small_config()
  with contextlib.closing(Checkpointer(tmp_path, config, TOKENIZER)) as checkpointer:
    for step in (1, 2):
      checkpointer.save(step, small_state(config), {}, None)
      checkpointer.wait(step)
    fault = ValueError(
      f'Error reading "params/embedding": {os.strerror(number)} [OS error {number}]'
    )
    with monkeypatch.context() as patched, pytest.raises(UserError, match=message) as error:
      patched.setattr(checkpoint, 'read_items', failing(fault))
      checkpointer.restore_newest()
    assert type(error.value) is kind
    assert checkpointer.restore_newest().step == 2
  assert available_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize('sizes', [{}, {'mesh.fsdp': 2, 'mesh.expert': 2, 'mesh.tensor': 2}])
def test_large_parameters_are_stored_in_pieces(tmp_path, monkeypatch, sizes):
  """A checkpoint in pieces is restored like any other, and moe.convert finds the pieces."""
  monkeypatch.setattr(checkpoint, '_PIECE', 600)
  config = small_config(**{'data.batch_size': 8, 'mesh.data': 1} | sizes)
  shapes = jax.eval_shape(lambda: init_state(config))
  generator = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: jnp.asarray(generator.integers(0, 9, x.shape).astype(x.dtype)), shapes
  )
  place = None
  if sizes:
    place = lambda shapes: shardings(config, make_mesh(config), shapes)
    state = jax.device_put(state, place(shapes))
  with contextlib.closing(Checkpointer(tmp_path, config, TOKENIZER)) as checkpointer:
    checkpointer.save(1, state, {}, None)
    checkpointer.wait(1)
    restored = checkpointer.restore_newest(place)
  jax.tree.map(np.testing.assert_array_equal, restored.state, state)
  for name in ('embedding', 'moe_blocks.moe.experts.gate', 'moe_blocks.attention.query'):
    stored = parameters.open_stored(tmp_path / 'checkpoints/1', name)
    assert math.prod(stored.chunks) * 4 <= 600, name
