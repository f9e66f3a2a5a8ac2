"""A batch that several processes feed arrives whole, whichever rows their devices hold."""

import json
import subprocess
import sys

from tests.launch.runs import programs
from tests.moe.processes import group


def test_rows_that_run_through_both_processes_come_from_each_once():
  port = str(group.free_port())
  command = [sys.executable, '-m', 'tests.moe.processes.feeding', port]
  both = [
    subprocess.Popen([*command, number], cwd=programs.ROOT, stdout=subprocess.PIPE, text=True)
    for number in '01'
  ]
  # Gloo prints to stdout too; our line is the last.
  told = [
    json.loads(process.communicate(timeout=group.PATIENCE)[0].splitlines()[-1]) for process in both
  ]
  assert [each['share'] for each in told] == [[0, 2], [1, 2]]
  # Process 0 feeds the first two and the last two rows of the mesh, in that order.
  assert told[0]['batch'] == told[1]['batch'] == [0, 1, 100, 101, 102, 103, 2, 3]
