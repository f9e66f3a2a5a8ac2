"""Workers for the device benchmark that compute nothing. They import little, since each is a new
process.
"""

import os
import time
from pathlib import Path

WHERE = {'device': 'none', 'jax': '0', 'commit': None}
CASES = ['good', 'crashes', 'after a crash', 'hangs', 'after it']


def serve(connection, rounds, log):
  """Runs cases that do as their names say; the second part has no time of its own."""
  connection.send((WHERE, [('first', 60.0, CASES), ('second', 0.0, ['put off'])]))
  for name in iter(connection.recv, None):
    if name == 'crashes':
      Path(log).write_text('before\nillegal address\n', encoding='utf-8')
      os._exit(3)
    if name == 'hangs':
      time.sleep(60)
    record = {'name': name, 'ratio_median': None, 'bar': None, 'process': os.getpid()}
    # 'good' says that its process is not well, so the next case gets a new process.
    connection.send(([record], name != 'good'))


def refuse(connection, rounds, log):
  Path(log).write_text('no such device\n', encoding='utf-8')
  os._exit(1)


def slow(connection, rounds, log):
  """Announces two cases; the first takes all the time there is."""
  connection.send((WHERE, [('only', 60.0, ['hangs', 'never begun'])]))
  connection.recv()
  time.sleep(60)
