"""A job array of a study."""

import os
import subprocess
from pathlib import Path

import pytest

from experiments.studies.common import Run
from experiments.sweeps import (
  slurm,
)
from moe.errors import UserError
from tests.experiments.sweeps.jobs import CONFIG, jobs_of
from tests.launch.cluster.scripts import fake
from tests.launch.runs import programs


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
  """sbatch that records its arguments and prints a job id;
  squeue that lists what is in the file `queued`.
  """
  fake(
    tmp_path / 'bin' / 'sbatch', f'printf "%s\\n" "$@" > {tmp_path}/submitted; echo "42;cluster"'
  )
  bin_folder = fake(tmp_path / 'bin' / 'squeue', f'cat {tmp_path}/queued')
  (tmp_path / 'queued').touch()
  monkeypatch.setenv('PATH', f'{bin_folder}:{os.environ["PATH"]}')
  return tmp_path


def test_an_array_has_a_task_for_each_run_not_trained(fake_slurm):
  runs_folder = fake_slurm / 'runs'
  runs = [Run(f'{count}', CONFIG, {'moe.num_experts': count}) for count in (2, 3, 4)]
  jobs = jobs_of(runs_folder, *runs)
  (jobs[0].workdir / 'checkpoints' / '40').mkdir(parents=True)
  assert [job.trained for job in jobs] == [True, False, False]
  assert slurm.submit('study', jobs[1:], runs_folder, ['--time=1:00:00']) == '42'
  *options, batch_file, commands = (fake_slurm / 'submitted').read_text().splitlines()
  assert {'--array=0-1', '--time=1:00:00', '--job-name=study'} <= set(options) and Path(
    batch_file
  ).name == 'slurm.sbatch'
  first, second = Path(commands).read_text().splitlines()
  assert first.startswith('python -m launch.train --config=tests/launch/runs/config.py --config.')
  assert f'--workdir={jobs[1].workdir}' in first and f'--workdir={jobs[2].workdir}' in second
  slurm.refuse_while_queued(runs_folder)
  (fake_slurm / 'queued').write_text('42_1 …\n')
  with pytest.raises(UserError, match=r'job array 42 .*scancel 42'):
    slurm.refuse_while_queued(runs_folder)


_ODD = [
  'a b',
  "it's",
  'one\ntwo',
  '\n',
  'x\r\t\x85\u2028\\n\'"$(false)`false`!',
  '\x1b[31m0a',
  'é 中 \\',
  '',
  'a;b|c&d',
]


@pytest.mark.parametrize('argument', _ODD)
def test_a_task_gets_its_arguments_as_they_are_from_one_line(argument, tmp_path):
  """A task takes them as launch/cluster/slurm.sbatch does: by eval of the line of its number."""
  line = f'printf %s\\\\0 {slurm.quoted([argument, "last"])}'
  (tmp_path / 'commands').write_text(f'false\n{line}\nfalse\n')
  script = f'eval "command=($(sed -n "2p" {tmp_path}/commands))"; "${{command[@]}}"'
  done = subprocess.run(['bash', '-c', script], capture_output=True, check=True)
  assert done.stdout.split(b'\0') == [argument.encode(), b'last', b'']


def test_only_a_job_unknown_to_slurm_has_ended(fake_slurm):
  runs_folder = fake_slurm / 'runs'
  runs_folder.mkdir()
  (runs_folder / 'slurm-study.job').write_text('42\n')
  squeue = fake_slurm / 'bin' / 'squeue'
  fake(squeue, 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
  slurm.refuse_while_queued(runs_folder)
  fake(squeue, 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
  with pytest.raises(
    UserError, match=r'Unable to contact .*: is job array 42 .*delete .*slurm-study\.job'
  ):
    slurm.refuse_while_queued(runs_folder)


def test_without_squeue_nobody_knows(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  slurm.refuse_while_queued(tmp_path)  # nothing was submitted from here
  (tmp_path / 'slurm-study.job').write_text('42\n')
  with pytest.raises(UserError, match='no squeue here'):
    slurm.refuse_while_queued(tmp_path)


def test_the_program_submits_an_array(fake_slurm, corpus):
  flags = (
    '--sweep=tests/experiments/sweeps/tiny_study.py',
    '--seeds=2',
    f'--workdir={fake_slurm}/runs',
    f'--results={fake_slurm}',
  )
  data = (f'--config.data.sources={corpus}', f'--config.data.dir={fake_slurm}/data')
  output = programs.check('sweep', *flags, *data, '--launcher=slurm', '--sbatch=--time=1:00:00')
  assert 'job array 42 trains 6 runs' in output and (fake_slurm / 'data' / 'metadata.json').exists()
  submitted = (fake_slurm / 'submitted').read_text().splitlines()
  assert '--array=0-5' in submitted and '--time=1:00:00' in submitted
  assert Path(submitted[-1]).read_text().count('\n') == 6
