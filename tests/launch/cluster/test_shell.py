"""Every shell script of launch/, through bash's parser and shellcheck."""

import subprocess

import pytest

from tests.launch.cluster.scripts import PYTHON_BIN, ROOT

_SCRIPTS = sorted(
  path for suffix in ('sh', 'sbatch') for path in (ROOT / 'launch').rglob(f'*.{suffix}')
)


@pytest.mark.parametrize('script', _SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize(
  'command',
  [('bash', '-n'), (PYTHON_BIN / 'shellcheck', '--severity=warning')],
  ids=['bash', 'shellcheck'],
)
def test_has_no_fault(command, script):
  done = subprocess.run([*command, script], capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_are_found():
  assert {'slurm.sbatch', 'tpu_vm.sh'} <= {path.name for path in _SCRIPTS}
