"""One JobSet per run, on GKE, each made from a manifest like launch/cluster/jobset.yaml, filled in.

The folder of the runs is on the volume that the manifest mounts, at the same place here as in the
pods: data is prepared here, and trained runs are scored here. The image must hold this code: lines
name the commit of the checkout that their runs were submitted from.
"""

import copy
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import yaml

from experiments.sweeps import clusters, machine, places, plan
from moe.errors import UserError, of_file

MANIFEST = 'launch/cluster/jobset.yaml'
_LABEL = 'deepseek-moe/sweep'  # on every JobSet of a folder; its value names the folder
_CONFIG = '--config='
_LONGEST = 40  # characters of a name: a pod's appends the slice's and its own numbers, 63 in all
_POLL, _PATIENCE = 30.0, 20  # seconds; failures of kubectl in a row
_ENDED = {'Completed': 'completed', 'Failed': 'failed'}


def submit(study: str, jobs: Sequence[plan.Job], runs_folder: Path, manifest: str) -> str:
  """Submits a JobSet for each job and replaces ended ones of the same name. Returns what was
  submitted, in words. UserError if the manifest is no JobSet, or its pods do not see the folder.
  """
  template = _template(manifest, runs_folder)
  for job in jobs:
    _check_config(job, template)
  made = [_job_set(template, study, job, runs_folder) for job in jobs]
  names = [each['metadata']['name'] for each in made]
  _kubectl('delete', 'jobset', '--ignore-not-found', *names)
  _kubectl('apply', '-f', '-', input=yaml.safe_dump_all(made, sort_keys=False, allow_unicode=True))
  commit = machine.commit()  # the image's is the same
  for job in jobs:
    machine.note_commit(job.workdir, commit)
  return f'JobSets of {_LABEL}={_folder(runs_folder)} train'


def check(runs_folder: Path, manifest: str) -> None:
  """UserError if `submit` would refuse the manifest or the folder."""
  _template(manifest, runs_folder)


def states(runs_folder: Path) -> dict[str, str]:
  """The state of every JobSet of a folder, by name: running, completed or failed."""
  asked = _kubectl('get', 'jobsets', '-l', f'{_LABEL}={_folder(runs_folder)}', '-o', 'json')
  found = {}
  for each in json.loads(asked)['items']:
    conditions = each.get('status', {}).get('conditions', [])
    ended = [_ENDED[c['type']] for c in conditions if c['type'] in _ENDED and c['status'] == 'True']
    found[each['metadata']['name']] = ended[0] if ended else 'running'
  return found


def refuse_while_queued(runs_folder: Path) -> None:
  """UserError if a JobSet of this folder is at work: two processes must not train one run."""
  if running := [name for name, state in states(runs_folder).items() if state == 'running']:
    raise UserError(
      f'{len(running)} JobSets of {runs_folder} are at work ({running[0]}, …): wait for them '
      '(--watch), make lines of what is finished (--collect), or `kubectl delete jobset '
      f'-l {_LABEL}={_folder(runs_folder)}`'
    )


def watch(runs_folder: Path, say: Callable[[str], None]) -> None:
  """Waits until no JobSet of the folder is at work; says how many are whenever that changes."""
  told, failures = None, 0
  while True:
    try:
      by_state, failures = states(runs_folder), 0
    except UserError as error:
      failures += 1
      if failures > _PATIENCE or told is None:  # what has never worked will not start to
        raise
      say(f'{error}; asked again')
      time.sleep(_POLL)
      continue
    if not by_state:
      say(f'the cluster has no JobSets of {runs_folder}')
      return
    counted = Counter(by_state.values())
    if counted != told:
      failed = sorted(name for name, state in by_state.items() if state == 'failed')
      names = f' ({", ".join(failed)}: kubectl logs)' if failed else ''
      say(', '.join(f'{number} {state}' for state, number in sorted(counted.items())) + names)
      told = counted
    if not counted['running']:
      return
    time.sleep(_POLL)


def _template(manifest, runs_folder):
  path = Path(places.located(manifest))
  try:
    found = yaml.safe_load(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise of_file(error, path) from error
  except yaml.YAMLError as error:
    raise UserError(f'{path} is no YAML: {" ".join(str(error).split())}') from error
  try:
    container, mounts = _container(found), _mounts(found)
    if found['kind'] != 'JobSet' or len(container['args']) < 2 or not found['metadata']['name']:
      raise KeyError('kind')
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise UserError(
      f'{path} (--manifest) must be of a JobSet with one container, a script and its name as its '
      f'first two arguments, and a volume, as {MANIFEST} has them: {error!r}'
    ) from error
  if 'PROJECT' in container['image']:
    raise UserError(f'{path} (--manifest): fill in image, claim and slice first')
  folder = PurePosixPath(runs_folder)
  if not folder.is_absolute():
    raise UserError(
      f'--workdir={runs_folder} is relative, and the pods have another folder at hand: '
      f'name it in full, below {" or ".join(mounts)}'
    )
  if not any(folder.is_relative_to(mount) for mount in mounts):
    raise UserError(
      f'--workdir={runs_folder} is on no volume of the pods, which see {", ".join(mounts)} '
      f'({path}): mount the volume there here, too, and name a folder of it'
    )
  return found


def _check_config(job, template):
  """UserError if the pods have a run's config neither in the image nor on the volume."""
  [file] = [flag for flag in map(_in_full, job.flags) if flag.startswith(_CONFIG)]
  path, mounts = PurePosixPath(file.removeprefix(_CONFIG).partition(':')[0]), _mounts(template)
  if not any(map(path.is_relative_to, (places.ROOT, *mounts))):
    raise UserError(
      f'{path}, the config of a run, is in no pod: put it into the checkout that the image is made '
      f'of, or below {" or ".join(mounts)}'
    )


def _in_full(flag):
  """A flag of a run, with the config's path in full: pods work in another folder."""
  if not flag.startswith(_CONFIG):
    return flag
  return f'{_CONFIG}{Path(flag.removeprefix(_CONFIG)).absolute()}'


def _mounts(template):
  return [mount['mountPath'] for mount in _container(template)['volumeMounts']]


def _job_set(template, study, job, runs_folder):
  """The template with a name, a label, and the run's flags in place of its own."""
  made, old = copy.deepcopy(template), template['metadata']['name']
  name = _name(study, job)
  made['metadata'] |= {
    'name': name,
    'labels': {**made['metadata'].get('labels', {}), _LABEL: _folder(runs_folder)},
  }
  container = _container(made)
  script, script_name, *_ = container['args']
  # The coordinator's address has the JobSet's name: NAME-slice-0-0.NAME.
  script = re.sub(rf'\b{re.escape(old)}(?=-slice-|:)', name, script)
  _, _, *flags = job.arguments('train')  # after -m launch.train
  flags = [_in_full(flag).replace(f'{_CONFIG}{places.ROOT}/', _CONFIG) for flag in flags]
  container['args'] = [script, script_name, *flags]
  return made


def _container(manifest):
  [replicated] = manifest['spec']['replicatedJobs']
  [container] = replicated['template']['spec']['template']['spec']['containers']
  return container


def _name(study, job):
  """The name of a job's JobSet: a DNS label, always the same for the same run."""
  end = f'-{job.config_hash}-{job.seed}'
  plain = re.sub('[^a-z0-9]+', '-', study.lower()).strip('-') or 'run'
  return f'{plain[: _LONGEST - len(end)].rstrip("-")}{end}'


def _folder(runs_folder):
  """A folder as a label's value, whatever characters its path has."""
  return hashlib.sha256(str(runs_folder.absolute()).encode()).hexdigest()[:16]


def _kubectl(*arguments: str, input: str | None = None) -> str:
  instead = '--launcher=gke and --watch need a machine that has the cluster'
  return clusters.answer(['kubectl', *arguments], instead, input)
