"""JobSets of a study, submitted to a stand-in for kubectl."""

import copy
import json
import os

import pytest
import yaml

from experiments.studies.common import Run
from experiments.sweeps import gke
from moe.errors import UserError
from tests.experiments.sweeps.jobs import CONFIG, jobs_of
from tests.launch.cluster.scripts import FOLDER, fake
from tests.launch.runs.programs import ROOT

# Records its arguments, keeps the manifest that is applied, and lists the JobSets in `jobsets`.
_KUBECTL = """
echo "$*" >> {folder}/called
case "$1 $2" in
  "apply -f") cat > {folder}/applied;;
  "get jobsets") cat {folder}/jobsets;;
esac
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  bin_folder = fake(tmp_path / 'bin' / 'kubectl', _KUBECTL.format(folder=tmp_path))
  monkeypatch.setenv('PATH', f'{bin_folder}:{os.environ["PATH"]}')
  (tmp_path / 'jobsets').write_text('{"items": []}')
  return tmp_path


@pytest.fixture
def manifest(cluster):
  """(the shipped manifest, filled in; its path). Its volume is mounted where the runs are."""
  found = yaml.safe_load((FOLDER / 'jobset.yaml').read_text())
  container = gke._container(found)
  container['image'] = 'europe-docker.pkg.dev/ours/images/deepseek-moe:1'
  container['volumeMounts'][0]['mountPath'] = str(cluster)
  container['args'][0] += '# --coordinator=deepseek-moe-slice-0-0.deepseek-moe:1234\n'
  path = cluster / 'jobset.yaml'
  path.write_text(yaml.safe_dump(found))
  return found, path


def _jobs(runs_folder):
  runs = [Run(f'{count}', CONFIG, {'moe.num_experts': count}) for count in (2, 3)]
  return jobs_of(runs_folder, *runs)


def _say_of(cluster, **states):
  conditions = {'running': [], 'completed': ['Completed'], 'failed': ['Failed']}
  items = [
    {
      'metadata': {'name': name},
      'status': {'conditions': [{'type': c, 'status': 'True'} for c in conditions[state]]},
    }
    for name, state in states.items()
  ]
  (cluster / 'jobsets').write_text(json.dumps({'items': items}))


def test_a_job_set_has_the_flags_of_its_run_and_the_rest_of_the_manifest(cluster, manifest):
  from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

  template, path = manifest
  jobs = _jobs(cluster / 'runs')
  said = gke.submit('My study_1', jobs, cluster / 'runs', str(path))
  assert said.startswith('JobSets of deepseek-moe/sweep=')
  made = list(yaml.safe_load_all((cluster / 'applied').read_text()))
  deleted, _ = (cluster / 'called').read_text().splitlines()
  assert deleted.startswith('delete jobset --ignore-not-found my-study-1-')
  assert len(made) == 2
  for job, each in zip(jobs, made):
    assert JobsetV1alpha2JobSet.from_dict(each).to_dict() == each  # keeps to the schema
    name = each['metadata']['name']
    assert name == f'my-study-1-{job.config_hash}-{job.seed}' and name in deleted
    script, script_name, *flags = gke._container(each)['args']
    assert ['-m', 'launch.train', *flags] == job.arguments('train') and script_name == 'train'
    assert f'--coordinator={name}-slice-0-0.{name}:1234' in script and 'launch.train "$@"' in script
    # All else is as in the manifest.
    back = copy.deepcopy(each)
    back['metadata'].pop('labels')
    back['metadata']['name'] = template['metadata']['name']
    gke._container(back)['args'] = gke._container(template)['args']
    assert back == template


def test_names_are_dns_labels_and_the_same_for_the_same_run(tmp_path):
  job, _ = _jobs(tmp_path)
  long = gke._name('a study of a very long name, and Capitals', job)
  assert len(long) <= 40 and long == gke._name('a study of a very long name, and Capitals', job)
  assert set(long) <= set('abcdefghijklmnopqrstuvwxyz0123456789-') and '--' not in long
  assert gke._name('中', job) == f'run-{job.config_hash}-{job.seed}'


def test_what_is_at_work_is_not_submitted_again_and_is_waited_for(cluster, monkeypatch):
  runs_folder = cluster / 'runs'
  gke.refuse_while_queued(runs_folder)
  _say_of(cluster, one='completed', two='running')
  assert gke.states(runs_folder) == {'one': 'completed', 'two': 'running'}
  with pytest.raises(UserError, match=r'1 JobSets of .*/runs are at work \(two, …\)'):
    gke.refuse_while_queued(runs_folder)
  then = iter([{'one': 'completed', 'two': 'running'}, {'one': 'completed', 'two': 'failed'}])
  monkeypatch.setattr(gke.time, 'sleep', lambda seconds: _say_of(cluster, **next(then)))
  said = []
  gke.watch(runs_folder, said.append)
  assert said == ['1 completed, 1 running', '1 completed, 1 failed (two: kubectl logs)']
  gke.refuse_while_queued(runs_folder)


def _without_image(m):
  gke._container(m)['image'] = 'REGION-docker.pkg.dev/PROJECT/x'


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda m: m.update(kind='Job'), 'must be of a JobSet'),
    (lambda m: gke._container(m).pop('volumeMounts'), 'must be of a JobSet'),
    (lambda m: gke._container(m).update(args=['x']), 'must be of a JobSet'),
    (lambda m: m['spec'].update(replicatedJobs=[]), 'must be of a JobSet'),
    (_without_image, 'fill in image, claim and slice first'),
    (
      lambda m: gke._container(m)['volumeMounts'][0].update(mountPath='/runs'),
      'is on no volume of the pods, which see /runs',
    ),
  ],
)
def test_a_manifest_that_would_not_do_is_told_before_anything_is_sent(
  cluster, manifest, change, words
):
  found, path = manifest
  change(found)
  path.write_text(yaml.safe_dump(found))
  with pytest.raises(UserError, match=words):
    gke.submit('study', _jobs(cluster / 'runs'), cluster / 'runs', str(path))
  assert not (cluster / 'called').exists()


def test_a_relative_folder_is_another_in_a_pod(cluster, manifest, monkeypatch):
  monkeypatch.chdir(cluster)
  with pytest.raises(UserError, match='--workdir=runs is relative'):
    gke.submit('study', _jobs(cluster / 'runs'), gke.Path('runs'), str(manifest[1]))


def test_a_config_that_no_pod_has_is_told(cluster, manifest, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp('elsewhere') / 'mine.py'
  on_the_volume = cluster / 'mine.py'
  for file in (elsewhere, on_the_volume):
    file.write_text((ROOT / 'experiments/proxy.py').read_text())
  run = lambda file: jobs_of(cluster / 'runs', Run('mine', f'{file}:dense', {}))
  with pytest.raises(UserError, match=rf'^{elsewhere}, the config of a run, is in no pod'):
    gke.submit('s', run(elsewhere), cluster / 'runs', str(manifest[1]))
  assert not (cluster / 'applied').exists()
  gke.submit('s', run(on_the_volume), cluster / 'runs', str(manifest[1]))


def test_a_relative_config_is_named_in_full(cluster, manifest, monkeypatch):
  """This one is on the volume. One in the checkout is named from there, where the image has it."""
  (cluster / 'mine.py').write_text((ROOT / 'experiments/proxy.py').read_text())
  monkeypatch.chdir(cluster)
  jobs = jobs_of(cluster / 'runs', Run('mine', 'mine.py:dense', {}))
  gke.submit('s', jobs, cluster / 'runs', str(manifest[1]))
  [made] = yaml.safe_load_all((cluster / 'applied').read_text())
  assert f'--config={cluster}/mine.py:dense' in gke._container(made)['args']


def test_a_failure_of_kubectl_does_not_end_a_wait(cluster, monkeypatch):
  runs_folder = cluster / 'runs'
  said = []
  gke.watch(runs_folder, said.append)
  assert said == [f'the cluster has no JobSets of {runs_folder}']
  answers = iter([{'a': 'running'}, UserError('timed out'), {'a': 'completed'}])

  def states(folder):
    answer = next(answers)
    if isinstance(answer, UserError):
      raise answer
    return answer

  monkeypatch.setattr(gke, 'states', states)
  monkeypatch.setattr(gke.time, 'sleep', lambda seconds: None)
  said.clear()
  gke.watch(runs_folder, said.append)
  assert said == ['1 running', 'timed out; asked again', '1 completed']


def test_what_cannot_be_read_or_run_is_one_line(cluster, manifest, monkeypatch):
  runs_folder = cluster / 'runs'
  for name, content, words in (
    ('none.yaml', None, 'none.yaml'),
    ('bad.yaml', 'a: [', 'is no YAML'),
  ):
    if content:
      (cluster / name).write_text(content)
    with pytest.raises(UserError, match=words):
      gke.submit('study', [], runs_folder, str(cluster / name))
  fake(cluster / 'bin' / 'kubectl', 'echo "no such context" >&2; exit 3')
  with pytest.raises(UserError, match=r'kubectl get jobsets .*: no such context'):
    gke.states(runs_folder)
  monkeypatch.setenv('PATH', str(cluster / 'nothing'))
  with pytest.raises(UserError, match='there is no kubectl here'):
    gke.states(runs_folder)
