"""What is installed, and that it works from any folder."""

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import PROGRAMS
from tests.launch.runs.programs import ROOT

_NAME = re.compile(r'[\w.-]+')


def _settings():
  settings = configparser.ConfigParser()
  settings.read(ROOT / 'setup.cfg')
  return settings


def test_the_command_knows_every_program():
  files = {path.stem for path in (ROOT / 'launch').glob('*.py') if not path.stem.startswith('__')}
  assert set(PROGRAMS) == files and len(PROGRAMS) == len(files)
  script = _settings()['options.entry_points']['console_scripts'].strip()
  assert script == 'deepseek-moe = launch.__main__:main'


@pytest.mark.parametrize('version', ['3.11', '3.13'])
def test_every_requirement_has_a_tested_version(version):
  lines = (ROOT / f'.ci/constraints-{version}.txt').read_text().splitlines()
  assert lines[0].startswith('#') and all(re.fullmatch(r'[\w.-]+==[\w.+!-]+', x) for x in lines[1:])
  pinned = {line.partition('==')[0] for line in lines[1:]}
  extras = _settings()['options.extras_require']
  wanted = (ROOT / 'requirements.txt').read_text() + extras['corpora'] + extras['dev']
  names = {_NAME.match(line.strip())[0] for line in wanted.splitlines() if line.strip()}
  assert {re.sub(r'[-_.]+', '-', name).lower() for name in names} <= pinned


def test_make_setup_installs_the_package_and_the_tested_versions():
  of = lambda *variables: (
    subprocess.run(
      ['make', '--dry-run', '--always-make', 'setup', 'VERSION=3.13', *variables],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
  )
  assert 'install -c .ci/constraints-3.13.txt -e .' in of() and '/activate' in of()
  assert '-c .ci' not in of('CONSTRAINTS=') and 'install  -e .' in of('CONSTRAINTS=')


def test_programs_work_in_a_folder_with_an_experiments_of_its_own(tmp_path):
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments' / '__init__.py').write_text('raise RuntimeError("not ours")')
  flags = ['--sweep=shared_off', '--seeds=3', '--dry_run']
  command = [sys.executable, '-m', 'launch', 'sweep', *flags]
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0 and '3 runs, 0 finished, 3 to do' in done.stdout, done.stderr
  assert f'--config={ROOT}/experiments/proxy.py:deepseek_moe' in done.stdout
  assert [path.name for path in Path(tmp_path).iterdir()] == ['experiments']
  refused = subprocess.run([*command[:3], 'swep'], env=environment, capture_output=True, text=True)
  assert refused.returncode == 2 and refused.stderr.startswith("error: there is no program 'swep'")


def test_nothing_but_tests_imports_the_programs():
  imports = re.compile(r'^\s*(from|import) launch\b', re.MULTILINE)
  files = [path for folder in ('moe', 'experiments') for path in (ROOT / folder).rglob('*.py')]
  assert files and not [path for path in files if imports.search(path.read_text(encoding='utf-8'))]
