"""A run written by commit c9dcf36 opens, and goes on with the numbers that commit itself logged.

tests/fixtures/run_c9dcf36/run is its folder after 6 of 12 steps on 40 pages of arithmetic
(corpus.jsonl). expected.json holds what the same commit logged in the other 6, in hexadecimal. They
were made with the flags of tests/conftest.py and
`python -m launch.train --config=tests/runs/config.py`; run/config.json has the keys that were
changed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.sweeps import machine
from moe.config import KEYS
from moe.keys import flatten

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / 'tests/fixtures/run_c9dcf36'
GO_ON = """
import json, sys
from moe.config import from_stored
from moe.train import train
workdir = sys.argv[1]
config = from_stored(json.load(open(f'{workdir}/config.json')), 'config.json')
assert train(config, workdir).finished
"""


@pytest.fixture(scope='module')
def gone_on(tmp_path_factory):
  """The run's folder after its last 6 steps."""
  workdir = tmp_path_factory.mktemp('old') / 'run'
  shutil.copytree(FIXTURE / 'run', workdir)
  flags = {'XLA_FLAGS': '--xla_backend_optimization_level=0', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', GO_ON, str(workdir)],
    cwd=ROOT,
    env=os.environ | flags,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert 'going on from step 6' in done.stdout
  return workdir


def test_an_old_run_goes_on_with_the_same_numbers(gone_on):
  expected = json.loads((FIXTURE / 'expected.json').read_text())
  lines = [json.loads(line) for line in (gone_on / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == list(range(1, 13))
  old = [json.loads(line) for line in (FIXTURE / 'run/metrics.jsonl').read_text().splitlines()]
  assert lines[:6] == old
  # Another version of XLA, or a processor with other vector units, sums the same floats in another
  # order.
  same = (expected['jax'], expected['machine']) == (
    jax.__version__,
    machine.describe_without_device(),
  )
  for line in lines[6:]:
    values = expected['steps'][str(line['step'])]
    for name, value in values.items():
      exact = float.fromhex(value)
      assert line[name] == (exact if same else pytest.approx(exact, rel=1e-5)), (line['step'], name)


def test_its_config_is_written_anew_with_every_key_of_today(gone_on):
  assert flatten(json.loads((gone_on / 'config.json').read_text())).keys() == KEYS.keys()
