"""Shared experts compute while tokens travel, as the TPU compiler's schedule of a layer shows."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.small import plain_environment

ROOT = Path(__file__).parents[4]


def test_shared_experts_run_between_start_and_end_of_the_exchange():
  python = ROOT / '.venv-tpu/bin/python'
  if not (ROOT / '.venv-tpu/.installed').exists():
    pytest.skip('the tpu compiler is not installed: make setup-aot')
  variables = plain_environment() | {'JAX_PLATFORMS': 'cpu'}
  command = [python, '-m', 'tests.moe.planner.kernels.overlap']
  done = subprocess.run(
    command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  open_exchanges, meanwhile = set(), {}
  for line in done.stdout.splitlines():  # in the order of the schedule
    name = re.match(r'\s*(?:ROOT )?%([\w.-]+) = ', line)
    if not name:
      continue
    if ' ragged-all-to-all-start(' in line:
      open_exchanges.add(name[1])
      meanwhile[name[1]] = set()
    elif ' ragged-all-to-all-done(' in line:
      open_exchanges -= {start for start in open_exchanges if f'%{start})' in line}
    elif computes := re.search(
      r' (while|fusion|convolution)\(.*op_name="([^"]*/shared/[^"]*/dot_general)', line
    ):
      for start in open_exchanges:
        meanwhile[start].add(computes[2])
  assert len(meanwhile) == 2  # one exchange sends tokens out, one brings them back
  assert not open_exchanges
  assert any(meanwhile.values()), (
    'no product of the shared experts between the start and the end of an exchange'
  )
