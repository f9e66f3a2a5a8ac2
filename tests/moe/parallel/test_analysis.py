"""Interventions and counts of choices on sharded parameters: as on one device."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_sharded_is_unsharded():
  done = subprocess.run(
    [sys.executable, '-m', 'tests.moe.parallel.intervened'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  record = json.loads(done.stdout)
  assert record['distance'][0] <= 1e-5, record
  assert record['experts_stay_split'] and record['rows_a_device'] == 1, record
