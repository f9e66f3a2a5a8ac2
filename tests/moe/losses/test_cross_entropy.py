"""Cross-entropy in chunks against the loops over tokens."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from moe.losses.cross_entropy import cross_entropy, token_losses
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close

T, D, V = 13, 6, 17


def _inputs(dtype):
  generator = np.random.default_rng(0)
  hidden_TD = jnp.asarray(generator.normal(size=(T, D)), jnp.bfloat16).astype(dtype)
  head_DV = jnp.asarray(generator.normal(size=(D, V)), jnp.bfloat16).astype(jnp.float32)
  targets_T = generator.integers(0, V, T).astype(np.int32)
  weights_T = (generator.random(T) < 0.7).astype(np.float32)
  return hidden_TD, head_DV, targets_T, weights_T


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('chunk', [1, 5, 13, 100])  # one token; not dividing T; T; more than T
def test_cross_entropy(chunk, dtype):
  hidden_TD, head_DV, targets_T, weights_T = _inputs(dtype)

  @jax.jit
  def run(hidden_TD, head_DV):
    scaled = lambda h, w: (
      3 * cross_entropy(h[None], w, targets_T[None], weights_T[None], chunk)[0]
    )  # the cotangent is not one
    return jax.value_and_grad(scaled, argnums=(0, 1))(hidden_TD, head_DV)

  loss, (d_hidden_TD, d_head_DV) = jax.device_get(run(hidden_TD, head_DV))
  assert (loss.dtype, d_hidden_TD.dtype, d_head_DV.dtype) == (jnp.float32, dtype, jnp.float32)
  truth, d_hidden, d_head = oracles.cross_entropy(
    exact(hidden_TD), exact(head_DV), targets_T, exact(weights_T)
  )
  assert_close(loss, np.array(3 * truth), 1e-6)
  relative = 1e-5 if dtype == jnp.float32 else 2**-7
  assert_close((d_hidden_TD, d_head_DV), (3 * d_hidden, 3 * d_head), relative)
  assert (d_hidden_TD[weights_T == 0] == 0).all()
  value, losses_1T = jax.jit(cross_entropy, static_argnums=4)(
    hidden_TD[None], head_DV, targets_T[None], weights_T[None], chunk
  )
  assert_close(value, np.array(truth), 1e-6)
  assert_close(losses_1T[0], _losses(hidden_TD, head_DV, targets_T), 1e-6)


def _losses(hidden_TD, head_DV, targets_T):
  return np.array(
    [
      oracles.cross_entropy(exact(h)[None], exact(head_DV), [target], [1.0])[0]
      for h, target in zip(hidden_TD, targets_T)
    ]
  )


@pytest.mark.parametrize('chunk', [5, 100])
def test_losses_beside_the_gradient(chunk):
  """The losses are unweighted, and no gradient flows back through them."""
  hidden_TD, head_DV, targets_T, weights_T = _inputs(jnp.float32)

  def run(hidden_TD):
    total, losses_1T = cross_entropy(
      hidden_TD[None], head_DV, targets_T[None], weights_T[None], chunk
    )
    return total + jnp.square(losses_1T).sum(), (total, losses_1T[0])

  (_, (total, losses_T)), d_hidden_TD = jax.jit(jax.value_and_grad(run, has_aux=True))(hidden_TD)
  assert_close(losses_T, _losses(hidden_TD, head_DV, targets_T), 1e-6)
  assert_close(total, (np.asarray(losses_T) * weights_T).sum(), 1e-6)
  _, d_hidden, _ = oracles.cross_entropy(
    exact(hidden_TD), exact(head_DV), targets_T, exact(weights_T)
  )
  assert_close(d_hidden_TD, d_hidden, 1e-5)


def test_token_losses():
  hidden_TD, head_DV, targets_T, _ = _inputs(jnp.float32)
  truth = _losses(hidden_TD, head_DV, targets_T)
  assert_close(
    jax.jit(token_losses, static_argnums=3)(hidden_TD[None], head_DV, targets_T[None], 5)[0],
    truth,
    1e-6,
  )


def _shapes(jaxpr):
  """Shapes of every value of a program and of its inner programs."""
  for equation in jaxpr.eqns:
    yield from (
      v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, 'shape')
    )
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _shapes(inner)


@pytest.mark.parametrize('gradient', [True, False])
def test_logits_of_all_tokens_never_exist(gradient):
  tokens, width, vocab, chunk = 4096, 2, 100_000, 64
  loss = lambda h, w: cross_entropy(
    h[None], w, jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens)), chunk
  )[0]
  function = jax.value_and_grad(loss, argnums=(0, 1)) if gradient else loss
  shapes = (
    jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16),
    jax.ShapeDtypeStruct((width, vocab), jnp.float32),
  )
  sizes = [math.prod(shape) for shape in _shapes(jax.make_jaxpr(function)(*shapes).jaxpr)]
  assert max(sizes) == chunk * vocab
  # The compiled program keeps only a few chunks' logits in float32, the head and its gradients.
  memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 8 * 4 * (chunk * vocab + width * vocab)
