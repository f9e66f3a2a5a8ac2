"""How processes find each other: wrong flags give a one-line error
before anything is started or written.
"""

import contextlib
import socket

import pytest

from moe.errors import TryAgain, UserError
from moe.parallel import processes
from moe.parallel.processes import Cluster
from tests.launch.runs import programs


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
    (
      Cluster('host:1', 4, 0, heartbeat_timeout=0),
      '--heartbeat_timeout must be at least 1 second, not 0',
    ),
    (
      Cluster('127.0.0.1:9', 2, 1, start_timeout=1),
      '--coordinator=127.0.0.1:9 did not answer within 1 s',
    ),
    (
      Cluster('nowhere.invalid:9', 2, 1, start_timeout=1),
      '--coordinator=nowhere.invalid:9 did not answer within 1 s',
    ),
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


def test_an_address_of_another_machine_is_named():
  with (
    pytest.raises(UserError, match=r'192\.0\.2\.1:9: process 0 cannot listen there: .*assign'),
    processes.join(Cluster('192.0.2.1:9', 2, 0)),
  ):
    pass


def test_a_coordinator_that_is_not_there_is_one_line_and_may_come_later(tmp_path):
  flags = ('--coordinator=127.0.0.1:9', '--num_processes=2', '--process_id=1', '--start_timeout=1')
  done = programs.run('train', programs.CONFIG, f'--workdir={tmp_path / "run"}', *flags)
  assert (done.returncode, done.stdout) == (TryAgain.exit_code, '')
  assert (
    done.stderr.startswith('error: --coordinator=127.0.0.1:9 did not answer')
    and done.stderr.count('\n') == 1
  )
  assert not (tmp_path / 'run').exists()


def test_one_process_alone_joins_nothing():
  with processes.join(Cluster(num_processes=1)):
    assert processes.is_main()
    assert processes.from_main(7) == 7
    assert processes.together(lambda: 3) == processes.main_first('three', lambda: 3) == 3
