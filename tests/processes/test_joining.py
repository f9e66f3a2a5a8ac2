"""How processes are told of each other: wrong flags are one line, before anything is started or written."""

import contextlib
import errno
import os
import socket
import types

import orbax.checkpoint as ocp
import pytest

from moe import processes
from moe.checkpoint import Checkpointer
from moe.errors import TryAgain, UserError
from moe.processes import Cluster
from moe.train_step import init_state
from tests.runs import programs
from tests.small import small_config


@pytest.mark.parametrize(
  'cluster, words',
  [
    (Cluster('host:1'), '--num_processes and --process_id must be given too'),
    (Cluster(num_processes=4), '--coordinator and --process_id must be given too'),
    (Cluster(process_id=0), '--coordinator and --num_processes must be given too'),
    (Cluster('host:1', 4), '--process_id must be given too'),
    (Cluster('host:1', 4, 4), '--process_id=4 must be from 0 to 3'),
    (Cluster('host:1', 4, -1), '--process_id=-1 must be from 0 to 3'),
    (Cluster('host:1', 0, 0), '--num_processes must be at least 1, not 0'),
    (Cluster('host', 4, 0), "--coordinator must be HOST:PORT, not 'host'"),
    (Cluster('host:0', 4, 0), "--coordinator must be HOST:PORT, not 'host:0'"),
    (Cluster('host:x', 4, 0), "--coordinator must be HOST:PORT, not 'host:x'"),
    (Cluster('host:1', 4, 0, heartbeat_timeout=0), '--heartbeat_timeout must be at least 1 second, not 0'),
    (Cluster('127.0.0.1:9', 2, 1, start_timeout=1), '--coordinator=127.0.0.1:9 did not answer within 1 s'),
    (Cluster('nowhere.invalid:9', 2, 1, start_timeout=1), '--coordinator=nowhere.invalid:9 did not answer within 1 s'),
  ],
)
def test_wrong_flags_are_named(cluster, words):
  with pytest.raises(UserError) as error, processes.join(cluster):
    pass
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_port_in_use_is_named():
  with contextlib.closing(socket.create_server(('', 0))) as taken:
    port = taken.getsockname()[1]
    with (
      pytest.raises(TryAgain, match=r'process 0 cannot listen there: .*in use'),
      processes.join(Cluster(f'127.0.0.1:{port}', 2, 0)),
    ):
      pass


def test_a_coordinator_that_is_not_there_is_one_line_and_may_come_later(tmp_path):
  flags = ('--coordinator=127.0.0.1:9', '--num_processes=2', '--process_id=1', '--start_timeout=1')
  done = programs.run('train', programs.CONFIG, f'--workdir={tmp_path / "run"}', *flags)
  assert (done.returncode, done.stdout) == (TryAgain.exit_code, '')
  assert done.stderr.startswith('error: --coordinator=127.0.0.1:9 did not answer') and done.stderr.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_one_process_alone_joins_nothing():
  with processes.join(Cluster(num_processes=1)):
    assert processes.is_main()
    assert processes.from_main(7) == 7
    assert processes.together(lambda: 3) == processes.main_first('three', lambda: 3) == 3


@pytest.mark.parametrize(
  'error, passes',
  [
    (OSError(errno.EIO, 'x'), True),
    (OSError(errno.ESTALE, 'Stale file handle', '/share/run'), True),
    (TimeoutError('x'), True),
    (ConnectionResetError(), True),
    (ValueError('UNKNOWN: Error writing "params/d/1": Input/output error [OS error 5: EIO]'), True),  # of tensorstore
    (OSError(errno.ENOSPC, 'x'), False),
    (PermissionError(errno.EACCES, 'x'), False),
    (FileNotFoundError(errno.ENOENT, 'x'), False),
    (ValueError('x'), False),
  ],
)
def test_what_may_pass_is_tried_again(error, passes):
  assert processes.may_pass(error) == passes
  outer = RuntimeError('while saving')
  outer.__cause__ = error
  assert processes.may_pass(outer) == passes


@pytest.mark.parametrize('number, kind', [(errno.EIO, TryAgain), (errno.ENOSPC, UserError)])
def test_a_save_that_may_pass_is_tried_again(number, kind, tmp_path, monkeypatch):
  config = small_config()
  state, tokenizer = init_state(config), types.SimpleNamespace(to_bytes=lambda: b'x')
  with contextlib.closing(Checkpointer(tmp_path, config, tokenizer)) as checkpointer:
    fail = lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number)))
    monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
    with pytest.raises(UserError, match=os.strerror(number)) as error:
      checkpointer.save(1, state, {}, None)
  assert type(error.value) is kind
