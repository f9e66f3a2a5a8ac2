"""What a checkpointer makes of faults that go away by themselves, and of those that do not."""

import contextlib
import errno
import os
import types

import orbax.checkpoint as ocp
import pytest

from moe import checkpoint
from moe.checkpoint import Checkpointer, available_steps
from moe.errors import TryAgain, UserError
from moe.train_step import init_state
from tests.small import small_config

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
      checkpointer.save(1, init_state(config), {}, None)
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
      checkpointer.save(step, init_state(config), {}, None)
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
