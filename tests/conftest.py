"""The suite's own settings: CPU, strict shapes, reproducible examples."""

import os

# Before jax is imported; by environment, so that programs the tests start see it too.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Half the compile time, which is most of the suite's; programs are optimised less, and otherwise the same.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
# No persistent compilation cache: reading back XLA:CPU executables can crash the process (seen with jax 0.10.2).

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile(
  'suite', derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile('suite')


@pytest.fixture(scope='module')
def quick_compile():
  """Leaves out more of XLA's passes, for tests that compile whole models; the ops' own tests do not."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
