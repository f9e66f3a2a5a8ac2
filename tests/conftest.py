"""The suite's settings: eight CPU devices, strict shapes, reproducible examples and
a shared cache of compiled programs.
"""

import importlib.metadata
import os
import tempfile

# Set before jax is imported, and in the environment, so that programs the tests start see it too.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Missing benchmark rows fail at once instead of being looked for on the network.
os.environ['HF_HUB_OFFLINE'] = '1'
# Halves the compile time, which is most of the suite's time. Programs are optimised less, and are
# otherwise the same.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
# Cuts the rest by more than half. Only jaxlib 0.10 has the choice: later ones abort on the flag.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# A program that one test compiles is reused by every other test, worker and started program.
# The folder is new for each session, so nothing survives a change of code or of jax.
# The cache ignores scope names: a test that reads them, or that tests compiling itself, uses
# `with small.compiled_anew()`. tests/test_compiled.py tests this cache.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _COMPILED = tempfile.TemporaryDirectory(prefix='tests-compiled-', ignore_cleanup_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import hypothesis
import jax
import pytest

# Meshes are tested on eight simulated devices, in this process only: programs that tests start
# have one, as on most machines. A test of code that takes every device uses
# `with small.one_device()`.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile(
  'suite', derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile('suite')

# The files and folders that take longest (40 seconds and more by `--durations=0`) run first: only
# short tests are left at the end, and two workers finish at about the same time.
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
  """Frees a file's compiled programs. Kept, they are several gigabytes by the end of the suite,
  where XLA's compiler has crashed (jax 0.12).
  """
  yield
  jax.clear_caches()


@pytest.fixture(scope='module')
def quick_compile():
  """Leaves out more of XLA's passes, for tests that compile whole models.
  The ops' own tests keep these passes.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
