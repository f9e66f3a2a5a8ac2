"""Submits a job array: one task per job not yet trained, through launch/cluster/slurm.sbatch."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.sweeps import clusters, machine, places, plan
from moe.errors import UserError

BATCH_FILE = 'launch/cluster/slurm.sbatch'
_ELSEWHERE = 'submit from a machine of the cluster, or --launcher=local'
_UNKNOWN_JOB = 'Invalid job id'  # what squeue says of a job that has ended some minutes ago


def submit(study: str, jobs: Sequence[plan.Job], runs_folder: Path, options: Sequence[str]) -> str:
  """Writes the commands, one line per task, and submits them as one array. Returns its job id."""
  commands = runs_folder / f'slurm-{study}.txt'
  commit = machine.commit()
  for job in jobs:
    machine.note_commit(job.workdir, commit)
  commands.write_text(
    ''.join(f'python {quoted(job.arguments("train"))}\n' for job in jobs), encoding='utf-8'
  )
  array = f'--array=0-{len(jobs) - 1}'
  command = [
    'sbatch',
    '--parsable',
    f'--job-name={study}',
    array,
    *options,
    places.located(BATCH_FILE),
    str(commands),
  ]
  told = clusters.answer(command, _ELSEWHERE)
  number = told.strip().partition(';')[0]
  _job_file(runs_folder, study).write_text(f'{number}\n', encoding='utf-8')
  return number


def check() -> None:
  """UserError if nothing can be submitted from here."""
  if not shutil.which('sbatch'):
    raise UserError(f'there is no sbatch here: {_ELSEWHERE}')


def quoted(arguments: Sequence[str]) -> str:
  """The arguments quoted for bash, on one line whatever they hold:
  the batch file finds its command by the line's number.
  """
  return ' '.join(map(_quoted, arguments))


def _quoted(argument):
  if argument.isprintable():
    return shlex.quote(argument)
  escaped = argument.replace('\\', '\\\\').replace("'", "\\'")
  return "$'" + ''.join(map(_plain, escaped)) + "'"


def _plain(char):
  """A character, as its bytes' numbers if it would end the line or be invisible in it."""
  return char if char.isprintable() else ''.join(f'\\x{byte:02x}' for byte in char.encode())


def refuse_while_queued(runs_folder: Path) -> None:
  """UserError if an array submitted for this folder is still in the queue:
  two processes must not train one run.
  """
  for file in sorted(runs_folder.glob('slurm-*.job')):
    number = file.read_text(encoding='utf-8').strip()
    if _is_queued(number, file):
      raise UserError(
        f'job array {number} for {runs_folder} is still in the queue: wait for it (--collect makes '
        f'lines of what is finished), or `scancel {number}`'
      )


def _is_queued(number, file):
  """Whether the array is in the queue. UserError if Slurm cannot say: of its failures,
  only an unknown job means that the array has ended.
  """
  untold = (
    f'is job array {number} still in the queue? Try again where squeue works, '
    f'or delete {file} if it has ended'
  )
  command = ['squeue', '--noheader', f'--jobs={number}']
  try:
    return bool(clusters.answer(command, 'only it can tell').strip())
  except UserError as error:
    if _UNKNOWN_JOB in str(error):
      return False
    raise UserError(f'{error}: {untold}') from None


def _job_file(runs_folder, study):
  return runs_folder / f'slurm-{study}.job'
