"""Every implementation of grouped_matmul, over patterns of empty groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.tpu import visits
from tests.moe.ops.backends import DTYPES, over
from tests.oracles import exact
from tests.small import assert_close

D, F = 6, 4
SIZES = [(5, 3, 8, 4), (0, 20, 0, 0), (20, 0, 0, 0), (0, 0, 0, 20), (1, 0, 18, 1), (0, 7, 13, 0)]


@functools.partial(jax.jit, static_argnames=('implementation',))
def run(rows_RD, weights_EDF, sizes_E, d_rows_RF, implementation):
  product = lambda x, w: grouped_matmul(x, w, sizes_E, implementation=implementation)
  y_RF, pull = jax.vjp(product, rows_RD, weights_EDF)
  return y_RF, *pull(d_rows_RF)


@over('dtype', dict.fromkeys(('reference', 'xla', 'pallas_tpu', 'pallas_gpu'), DTYPES))
def test_against_a_loop_over_rows(implementation, dtype):
  normal = np.random.default_rng(0).normal
  rows_RD, weights_EDF = (
    jnp.asarray(normal(size=(20, D)), dtype),
    jnp.asarray(normal(size=(4, D, F)), dtype),
  )
  # bfloat16 holds the cotangent exactly: an implementation may round it to the operands' dtype.
  dy_RF = jnp.asarray(normal(size=(20, F)), jnp.bfloat16).astype(jnp.float32)
  for sizes in SIZES:
    y_RF, dx_RD, dw_EDF = run(
      rows_RD, weights_EDF, np.array(sizes, np.int32), dy_RF, implementation
    )
    assert (y_RF.dtype, dx_RD.dtype, dw_EDF.dtype) == (jnp.float32, dtype, dtype)
    x, w, dy = exact(rows_RD), exact(weights_EDF), exact(dy_RF)
    y, dx, dw = np.zeros((20, F)), np.zeros_like(x), np.zeros_like(w)
    for r, e in enumerate(np.repeat(np.arange(4), sizes)):
      y[r], dx[r] = x[r] @ w[e], w[e] @ dy[r]
      dw[e] += np.outer(x[r], dy[r])
    assert_close(y_RF, y, 1e-6)
    assert_close((dx_RD, dw_EDF), (dx, dw), 1e-6 if dtype == jnp.float32 else 2**-7)


@over('dtype', {'pallas_tpu': DTYPES})
def test_column_tiles(implementation, dtype, monkeypatch):
  """Columns are cut into tiles of 128. The second tile overhangs, forward and backward, and so does
  the last block of rows.
  """
  monkeypatch.setattr(visits, 'BLOCK_BYTES', 1)
  generator = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(generator.normal(size=shape), dtype)
  sizes_E, x_RD, w_EDF = np.array([3, 0, 30, 8], np.int32), draw(41, 136), draw(4, 136, 200)
  dy_RF, results = draw(41, 200).astype(jnp.float32), []
  for chosen in (implementation, 'reference'):
    # Jitted anew: block sizes are not in the cache key of `run`.
    anew = jax.jit(lambda *a, i=chosen: run.__wrapped__(*a, i))
    results.append(anew(x_RD, w_EDF, sizes_E, dy_RF))
  assert_close(*results, 2e-6 if dtype == jnp.float32 else 2**-7)
