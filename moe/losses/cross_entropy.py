"""Cross-entropy of the next token, with the logits of only a few tokens in memory at once.

T tokens, B sequences of L tokens, D model width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.matmul import matmul, matmul_nt, matmul_tn
from moe.ops.quantized import Matrix, as_numbers
from moe.parallel import mesh, sharding, zero

HEAD_AXES = ('width', 'vocab')  # logical axes of the head's matrix


def cross_entropy(
  hidden_BLD: jax.Array,
  head_DV: jax.Array,
  targets_BL: jax.Array,
  weights_BL: jax.Array,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """Σ weight · −log softmax(hidden · head)[target], float32, and losses_BL of every token,
  unweighted and without a gradient.

  Only the logits of `chunk` tokens are in memory at once. The gradients of hidden and head are
  computed along with the value, so logits are never computed twice. The products are computed in
  the type of `hidden`; everything after them is float32. Targets and weights have no gradient.
  On a mesh every device takes its own sequences and its own part of the vocabulary.
  """

  stored, batch = sharding.stored(HEAD_AXES, head_DV.shape), sharding.spec('batch')

  def on_shard(hidden_BLD, head_DV, *targets_and_weights):
    hidden_TD, targets_T, weights_T = (_rows(x) for x in (hidden_BLD, *targets_and_weights))
    head_DV = zero.gathered(head_DV, stored, hidden_TD.dtype)
    total, losses_T = _cross_entropy(
      hidden_TD, head_DV, targets_T, weights_T, chunk, _vocabulary_axis()
    )
    return total[None], losses_T.reshape(targets_and_weights[0].shape)

  run = sharding.per_shard(on_shard, (batch, stored.spec, batch, batch), (batch, batch))
  totals, losses_BL = run(hidden_BLD, head_DV, targets_BL, weights_BL)
  return totals.sum(), losses_BL


def token_losses(
  hidden_BLD: jax.Array, head_DV: Matrix, targets_BL: jax.Array, chunk: int
) -> jax.Array:
  """float32 losses_BL in nats, with the logits of only `chunk` tokens in memory at once."""
  return token_scores(hidden_BLD, head_DV, targets_BL, chunk)[0]


def token_scores(
  hidden_BLD: jax.Array, head_DV: Matrix, targets_BL: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """As `token_losses`, and is_likeliest_BL: whether no token is likelier than the target."""

  stored, batch = sharding.stored(HEAD_AXES, head_DV.shape), sharding.spec('batch')

  def on_shard(hidden_BLD, head_DV, targets_BL):
    head_DV = as_numbers(zero.gathered(head_DV, stored, hidden_BLD.dtype), hidden_BLD.dtype)
    scores = _token_scores(_rows(hidden_BLD), head_DV, _rows(targets_BL), chunk, _vocabulary_axis())
    return tuple(x_T.reshape(targets_BL.shape) for x_T in scores)

  specs = batch, sharding.specs(head_DV, stored), batch
  run = sharding.per_shard(on_shard, specs, (batch, batch))
  return run(hidden_BLD, head_DV, targets_BL)


def _rows(x_BLn):
  return x_BLn.reshape(-1, *x_BLn.shape[2:])


def _vocabulary_axis():
  """The mesh axis that splits the vocabulary, or None."""
  return 'tensor' if mesh.size('tensor') > 1 else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(hidden_TD, head_DV, targets_T, weights_T, chunk, axis):
  losses_T, _ = _token_scores(hidden_TD, head_DV, targets_T, chunk, axis)
  return (losses_T * weights_T).sum(), losses_T


def _token_scores(hidden_TD, head_DV, targets_T, chunk, axis):
  head = head_DV.astype(hidden_TD.dtype)
  chunks = _chunks((hidden_TD, targets_T), chunk)
  scores = lax.map(lambda c: _logits_and_losses(c[0], head, c[1], axis)[2:], chunks)
  return tuple(x.reshape(-1)[: targets_T.shape[0]] for x in scores)


def _cross_entropy_forward(hidden_TD, head_DV, targets_T, weights_T, chunk, axis):
  dtype = hidden_TD.dtype
  head = head_DV.astype(dtype)

  def step(carry, chunk_inputs):
    total, d_head_DV = carry
    hidden_cD, targets_c, weights_c = chunk_inputs
    shares_cV, is_target_cV, losses_c, _ = _logits_and_losses(hidden_cD, head, targets_c, axis)
    d_logits_cV = ((shares_cV - is_target_cV) * weights_c[:, None]).astype(dtype)
    d_head_DV += matmul_tn(hidden_cD, d_logits_cV)
    total += (losses_c * weights_c).sum()
    return (total, d_head_DV), (matmul_nt(d_logits_cV, head), losses_c)

  start = jnp.zeros((), jnp.float32), jnp.zeros(head_DV.shape, jnp.float32)
  (total, d_head_DV), (d_hidden, losses) = lax.scan(
    step, start, _chunks((hidden_TD, targets_T, weights_T), chunk)
  )
  d_hidden_TD = d_hidden.reshape(-1, hidden_TD.shape[1])[: hidden_TD.shape[0]]
  losses_T = losses.reshape(-1)[: targets_T.shape[0]]
  # Zero-sized: carry the types of the gradients to backward.
  types = jnp.zeros(0, hidden_TD.dtype), jnp.zeros(0, head_DV.dtype)
  return (total, losses_T), (d_hidden_TD, d_head_DV, *types)


def _cross_entropy_backward(chunk, axis, residuals, gradients):
  del chunk
  d_total, _ = gradients
  if axis:  # every part of the vocabulary received only its share of the gradient
    d_total = lax.psum(d_total, axis)
  d_hidden_TD, d_head_DV, like_hidden, like_head = residuals
  scaled = lambda gradient, like: (gradient * d_total).astype(like.dtype)
  return scaled(d_hidden_TD, like_hidden), scaled(d_head_DV, like_head), None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _logits_and_losses(hidden_cD, head_DV, targets_c, axis):
  """softmax(logits)_cV, bool is_target_cV, losses_c, and bool (c,): whether the target has the
  largest logit. Sums and maxima cover all parts of a vocabulary that `axis` splits.
  """
  over_parts = (lambda reduce, x: reduce(x, axis)) if axis else (lambda reduce, x: x)
  logits_cV = matmul(hidden_cD, head_DV)
  first = lax.axis_index(axis) * head_DV.shape[1] if axis else 0
  is_target_cV = (targets_c - first)[:, None] == jnp.arange(head_DV.shape[1])[None]
  largest_c = over_parts(lax.pmax, logits_cV.max(axis=1))
  shifted_cV = jnp.exp(logits_cV - largest_c[:, None])
  sum_c = over_parts(lax.psum, shifted_cV.sum(axis=1))
  target_logits_c = over_parts(lax.psum, jnp.where(is_target_cV, logits_cV, 0).sum(axis=1))
  losses_c = largest_c + jnp.log(sum_c) - target_logits_c
  return shifted_cV / sum_c[:, None], is_target_cV, losses_c, target_logits_c == largest_c


def _chunks(arrays, chunk):
  """Arrays of T rows as (chunks, chunk, ...), zero-padded: a zero weight makes padding harmless."""

  def split(x):
    size = min(chunk, x.shape[0])
    padding = -x.shape[0] % size
    padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(-1, size, *x.shape[1:])

  return jax.tree.map(split, arrays)
