"""The suite's own settings: CPU, eight devices, strict shapes, reproducible examples,
compiled programs shared.
"""

import importlib.metadata
import os
import tempfile

# Before jax is imported; by environment, so that programs the tests start see it too.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Rows of a benchmark that are not there fail at once: nothing is looked for in the network.
os.environ['HF_HUB_OFFLINE'] = '1'
# Half the compile time, which is most of the suite's;
# programs are optimised less, and otherwise the same.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
# Less than half of what is left, where the compiler has a choice: later ones abort on the flag.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# What one test has compiled the others take, in this process, the other workers' and the programs
# that tests start. The folder is new for each session: nothing survives a change of code or of jax.
# Names of scopes do not tell programs apart there: a test that reads them, or tests compiling
# itself, says `with small.compiled_anew()`. tests/test_compiled.py holds the rest.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _COMPILED = tempfile.TemporaryDirectory(prefix='tests-compiled-', ignore_cleanup_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import hypothesis
import jax
import pytest

# Meshes are tested on eight simulated devices, of this process alone: programs that tests start
# have one, as on most machines. A test of what takes every device there is says
# `with small.one_device()`.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile(
  'suite', derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile('suite')

# Files and folders that take longest, first: what is left at the end is short, and two workers end
# at about the same time (`--durations=0`, 40 seconds and more).
_LONGEST_FIRST = (
  'tests/moe/processes/test_runs.py',
  'tests/launch/runs/test_resume.py',
  'tests/moe/planner/test_compile.py',
  'tests/moe/inspection/test_run.py',
  'tests/moe/ops/test_routed_ffn.py',
  'tests/experiments/sweeps/test_sweep.py',
  'tests/moe/test_train_step.py',
  'tests/moe/planner/kernels/',
  'tests/launch/',
  'tests/experiments/',
  'tests/moe/test_generate.py',
  'tests/moe/convert/',
  'tests/moe/parallel/',
  'tests/moe/processes/',
  'tests/test_extending.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  def rank(item):
    starts = (item.nodeid.startswith(prefix) for prefix in _LONGEST_FIRST)
    return next((place for place, is_it in enumerate(starts) if is_it), len(_LONGEST_FIRST))

  items.sort(key=rank)


@pytest.fixture(scope='module', autouse=True)
def _programs_are_let_go():
  """A file's compiled programs, several gigabytes by the end of the suite, where XLA's compiler has
  crashed (jax 0.12).
  """
  yield
  jax.clear_caches()


@pytest.fixture(scope='module')
def quick_compile():
  """Leaves out more of XLA's passes, for tests that compile whole models;
  the ops' own tests do not.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
