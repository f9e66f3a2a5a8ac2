"""The GKE manifest against the published schema of JobSets,
and the script in it as a pod would run it.
"""

import contextlib
import copy
import math
import os
import signal
import subprocess

import pytest
import yaml

from tests.launch.cluster.scripts import FOLDER, ROOT, fake


@pytest.fixture
def manifest():
  return yaml.safe_load((FOLDER / 'jobset.yaml').read_text())


def _check(manifest):
  """Raises ValueError unless every field is in the schema and of its type,
  and every required one is present.
  """
  # Imported here: it takes seconds, and every worker imports every file.
  from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

  # The models, generated from JobSet's OpenAPI schema, leave out fields they do not know:
  # hence the comparison.
  if JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest:
    raise ValueError('unknown fields')


def _job(manifest):
  (job,) = manifest['spec']['replicatedJobs']
  return job['template']['spec']


def _pod(manifest):
  return _job(manifest)['template']['spec']


def _container(manifest):
  (container,) = _pod(manifest)['containers']
  return container


def test_keeps_to_the_schema(manifest):
  _check(manifest)
  assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')


@pytest.mark.parametrize(
  'break_it',
  [
    lambda m: m['spec'].update(failurepolicy={}),
    lambda m: m['spec']['failurePolicy'].update(maxRestarts='many'),
    lambda m: m['spec']['failurePolicy']['rules'][0].pop('action'),
    lambda m: m['spec']['replicatedJobs'][0].pop('name'),
    lambda m: _job(m).update(backoff_limit=0),
    lambda m: _pod(m).update(terminationGracePeriodSeconds='5m'),
    lambda m: _container(m).update(args='--config=…'),
    lambda m: _container(m)['volumeMounts'][0].pop('mountPath'),
  ],
)
def test_the_schema_notices(manifest, break_it):
  broken = copy.deepcopy(manifest)
  break_it(broken)
  with pytest.raises(ValueError):
    _check(broken)


def test_the_slice_and_its_names_agree(manifest):
  job, pod, container = _job(manifest), _pod(manifest), _container(manifest)
  chips = math.prod(map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')))
  assert job['parallelism'] * container['resources']['limits']['google.com/tpu'] == chips
  assert job['completions'] == job['parallelism']
  assert job['podFailurePolicy']['rules'][0]['onExitCodes']['containerName'] == container['name']
  # The exit codes of launch/supervise.sh, without success.
  assert job['podFailurePolicy']['rules'][0]['onExitCodes']['values'] == [2, 129, 130]
  assert [mount['name'] for mount in container['volumeMounts']] == [
    volume['name'] for volume in pod['volumes']
  ]
  *_, config, workdir = container['args']
  assert (ROOT / config.removeprefix('--config=').split(':')[0]).is_file()
  assert workdir.startswith(f'--workdir={container["volumeMounts"][0]["mountPath"]}/')


@pytest.fixture
def start(manifest, tmp_path):
  """start(script) runs the container's command, in which `python` runs
  the bash script instead.
  """
  pods = []

  def start(script):
    environment = os.environ | {'PATH': f'{fake(tmp_path / "python", script)}:{os.environ["PATH"]}'}
    container = _container(manifest)
    command = [*container['command'], *container['args']]
    pod = subprocess.Popen(
      command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    pods.append(pod)
    return pod

  yield start
  for pod in pods:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(pod.pid, signal.SIGKILL)
    pod.communicate()


@pytest.mark.parametrize('code', [0, 2, 130, 134])
def test_the_pod_ends_as_the_run_does(manifest, start, code):
  pod = start(f'printf "%s\\n" "$@"; exit {code}')
  output, _ = pod.communicate(timeout=60)
  assert pod.returncode == code
  assert output.splitlines() == ['-m', 'launch.train', *_container(manifest)['args'][2:]]


def test_a_pod_that_is_told_to_leave_lets_the_run_save_and_fails(start):
  pod = start(
    'trap "sleep 0.5; echo saved; exit 0" TERM; echo started; while :; do sleep 0.05; done'
  )
  assert pod.stdout.readline() == 'started\n'
  pod.send_signal(signal.SIGTERM)
  output, _ = pod.communicate(timeout=60)
  assert (pod.returncode, output) == (143, 'saved\n')
