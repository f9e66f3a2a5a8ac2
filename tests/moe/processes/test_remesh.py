"""A checkpoint restores on any mesh, for any number of processes, whatever wrote it."""

import os
import subprocess
import sys

from tests.launch.runs.programs import ROOT
from tests.moe.processes import remesh


def test_a_run_handed_from_mesh_to_mesh_keeps_every_bit_and_the_next_example(data_flags, tmp_path):
  flags = dict(flag.removeprefix('--config.').split('=', 1) for flag in data_flags)
  command = [
    sys.executable,
    '-m',
    'tests.moe.processes.remesh',
    str(tmp_path),
    flags['data.dir'],
    flags['data.sources'],
  ]
  simulated = os.environ | {
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8'
  }
  done = subprocess.run(
    command, cwd=ROOT, env=simulated, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stdout.splitlines()) == len(remesh.CASES) - 1 >= 8
