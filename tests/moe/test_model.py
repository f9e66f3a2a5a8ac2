"""The whole model agrees with the loops, leaks nothing across documents or from the future, and
gives the same result however it is computed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.data.packing import Batch
from moe.model import Transformer
from moe.routers.hash import hash_table
from moe.train_step import loss_and_gradients
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, packed_batch, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

VARIANTS = {
  'moe': {'moe.expert_balance_weight': 0.0},  # a balance loss couples the documents of a row
  'dense_first_gqa': {
    'model.num_dense_layers': 1,
    'model.d_ff': 12,
    'model.num_layers': 2,
    'model.num_kv_heads': 1,
    'moe.experts_per_token': 3,
    'moe.num_shared_experts': 2,
    'moe.router_z_weight': 0.01,
  },
  'switch': {
    'model.num_layers': 1,
    'moe.num_shared_experts': 0,
    'moe.experts_per_token': 1,
    'ops.implementation': 'reference',
  },
  'hash': {
    'model.num_layers': 1,
    'moe.router': 'hash',
    'moe.num_shared_experts': 0,
    'moe.experts_per_token': 1,
    'ops.implementation': 'reference',
  },
  'shared_only': {'model.num_layers': 1, 'moe.num_experts': 0, 'moe.experts_per_token': 0},
  'dense': {
    'model.num_layers': 1,
    'model.num_dense_layers': 1,
    'model.d_ff': 12,
    'moe.num_experts': 0,
    'moe.experts_per_token': 0,
    'moe.num_shared_experts': 0,
  },
}


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, tokens_BL, positions_BL, segment_ids_BL):
  return Transformer(config).apply({'params': params}, tokens_BL, positions_BL, segment_ids_BL)[0]


_compiled = jax.jit(loss_and_gradients, static_argnums=0)


def gradients(config, params, batch):
  """(gradients, metrics) as NumPy arrays, since indexing them compiles nothing."""
  return jax.device_get(_compiled(config, params, batch))


def _oracle(config, params, tokens_L, positions_L, segments_L):
  """Final hidden states of one row."""
  model, x_LD = config.model, exact(params['embedding'])[tokens_L]
  norm = lambda x_LD, scale_D: np.array(
    [oracles.rms_norm(x, scale_D, model.norm_eps) for x in x_LD]
  )
  expert = lambda tree, *at: oracles.Expert(
    *(exact(tree[name])[at] for name in ('gate', 'up', 'down'))
  )
  for layer in range(model.num_layers):
    dense = layer < model.num_dense_layers
    at = layer if dense else layer - model.num_dense_layers
    block = jax.tree.map(
      lambda x, at=at: exact(x)[at], params['dense_blocks' if dense else 'moe_blocks']
    )
    matrices = (block['attention'][name] for name in ('query', 'key', 'value', 'out'))
    heads = model.num_heads, model.num_kv_heads, model.rope_base
    u_LD = norm(x_LD, block['attention_norm']['scale'])
    x_LD = x_LD + oracles.attention(u_LD, positions_L, segments_L, *matrices, *heads)
    u_LD = norm(x_LD, block['ffn_norm']['scale'])
    if dense:
      x_LD = x_LD + [oracles.ffn(u_D, expert(block['mlp'])) for u_D in u_LD]
      continue
    moe = block['moe']
    shared = [expert(moe['shared'])] if 'shared' in moe else []
    routed = [expert(moe['experts'], e) for e in range(config.moe.num_experts)]
    if 'router' in moe:
      weights = oracles.MoEWeights(moe['router']['experts'], routed, shared)
      x_LD = x_LD + oracles.moe_layer(u_LD, weights, config.moe.experts_per_token)
    else:
      x_LD = x_LD + [sum(oracles.ffn(u_D, e) for e in shared) for u_D in u_LD] if shared else x_LD
      if routed:
        table_VK = hash_table(
          model.vocab_size, len(routed), config.moe.experts_per_token, config.moe.hash_seed
        )
        experts_LK = table_VK[tokens_L]
        x_LD = x_LD + oracles.routed_ffn(u_LD, np.ones(experts_LK.shape), experts_LK, routed)
  return norm(x_LD, exact(params['final_norm']['scale']))


def _inputs(batch):
  return batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL


@pytest.mark.parametrize('variant', VARIANTS)
def test_loss_against_the_loops_and_a_gradient_for_every_parameter(variant):
  config = small_config(**VARIANTS[variant])
  params, batch = small_params(config), packed_batch(config)
  computed, metrics = gradients(config, params, batch)
  truth = 0.0
  for row in zip(*batch):
    tokens_L, targets_L, positions_L, segments_L, weights_L, _ = row
    hidden_LD = _oracle(config, params, tokens_L, positions_L, segments_L)
    truth += oracles.cross_entropy(hidden_LD, exact(params['head']), targets_L, exact(weights_L))[0]
  assert float(metrics['loss']) == pytest.approx(truth / batch.weights_BL.sum(), rel=1e-5)
  assert ('max_vio_N' in metrics) == (config.moe.num_experts > 0)

  for path, gradient in jax.tree_util.tree_leaves_with_path(computed):
    assert np.isfinite(gradient).all(), path
    # Every stacked layer has a gradient. An expert may be unused, but not all of a layer's.
    layers = [gradient] if path[0].key in ('embedding', 'head', 'final_norm') else gradient
    assert all(np.abs(layer).max() > 0 for layer in layers), path


# In row 0, document 1 has ids 0–4 and document 2 ids 5–10, before padding with id 31. Row 1 holds
# document 1 alone, row 2 document 2.
TOKENS_BL = np.array(
  [[*range(11), 31], [*range(5), *[31] * 7], [*range(5, 11), *[31] * 6], [31] * 12], np.int32
)
SEGMENTS_BL = np.array(
  [[1] * 5 + [2] * 6 + [0], [1] * 5 + [0] * 7, [1] * 6 + [0] * 6, [0] * 12], np.int32
)
POSITIONS_BL = np.array([[*range(5), *range(6), 0], [*range(12)], [*range(12)], [0] * 12], np.int32)


@pytest.mark.parametrize('variant', ['moe', 'dense_first_gqa'])
def test_a_packed_document_is_as_if_alone_and_as_the_loops_say(variant):
  config = small_config(**VARIANTS[variant])
  params = small_params(config)
  hidden_BLD = np.asarray(hidden(config, params, TOKENS_BL, POSITIONS_BL, SEGMENTS_BL))
  packed_LD, first_LD, second_LD, _ = hidden_BLD
  assert_close(packed_LD[:5], first_LD[:5], 1e-6)
  assert_close(packed_LD[5:11], second_LD[:6], 1e-6)
  assert_close(
    packed_LD[:11],
    _oracle(config, params, TOKENS_BL[0], POSITIONS_BL[0], SEGMENTS_BL[0])[:11],
    2e-5,
  )


def test_neither_other_documents_nor_the_future_are_seen():
  """The gradient of one position's loss is exactly zero in the embeddings of every
  token that it must not see.
  """
  config = small_config(**VARIANTS['moe'])
  params = small_params(config)
  for position in range(11):
    weights_BL = np.zeros((4, 12), np.float32)
    weights_BL[0, position] = 1
    batch = Batch(TOKENS_BL, np.full((4, 12), 20, np.int32), POSITIONS_BL, SEGMENTS_BL, weights_BL)
    computed, _ = gradients(config, params, batch)
    sensitivity_V = np.abs(computed['embedding']).max(axis=1)
    seen = [*range(0 if position < 5 else 5, position + 1)]
    assert (sensitivity_V[seen] > 1e-7).all(), position
    assert (np.delete(sensitivity_V, seen) == 0).all(), position


def test_logits_are_float32_and_of_the_head():
  config = small_config()
  params, hidden_BD = (
    small_params(config),
    np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32),
  )
  logits_BV = Transformer(config).apply({'params': params}, hidden_BD, method='logits')
  assert logits_BV.dtype == jnp.float32
  assert_close(logits_BV, exact(hidden_BD) @ exact(params['head']), 1e-6)


@pytest.mark.parametrize(
  'changes',
  [
    {'model.remat': 'full'},
    {'model.remat': 'dots'},
    {'model.remat': 'moe'},
    {'model.unroll': 1},
    {'model.unroll': 2, 'model.remat': 'full'},
    {'model.unroll': 2, 'model.remat': 'moe'},
    {'ops.implementation': 'reference'},
  ],
  ids=lambda changes: ','.join(map(str, changes.values())),
)
def test_how_it_is_computed_changes_nothing(changes):
  deep = VARIANTS['dense_first_gqa'] | {'model.num_layers': 4}  # three of one kind
  plain, other = small_config(**deep), small_config(**deep | changes)
  params, batch = small_params(plain), packed_batch(plain)
  expected, expected_metrics = gradients(plain, params, batch)
  computed, metrics = gradients(other, params, batch)
  assert_close(computed, expected, 1e-5)
  assert_close(metrics, expected_metrics, 1e-5)


def test_bfloat16_is_close_to_float32():
  plain = small_config(**VARIANTS['moe'])
  half = small_config(**VARIANTS['moe'] | {'model.dtype': 'bfloat16'})
  # Parameters are near a real initialisation. With large ones, rounding would choose other experts.
  params, batch = small_params(plain, std=0.1), packed_batch(plain)
  expected, expected_metrics = gradients(plain, params, batch)
  computed, metrics = gradients(half, params, batch)
  assert float(metrics['loss']) == pytest.approx(float(expected_metrics['loss']), rel=2e-3)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(computed))
  assert_close(computed['head'], expected['head'], 3e-2)
  assert_close(computed['embedding'], expected['embedding'], 0.1)
  assert (
    jax.eval_shape(functools.partial(hidden, half), params, *_inputs(batch)).dtype == jnp.bfloat16
  )


def test_what_padding_holds_changes_nothing():
  config = small_config(**VARIANTS['dense_first_gqa'])
  params, batch = small_params(config), packed_batch(config, padding_row=True)
  other = (
    np.where(batch.segment_ids_BL > 0, batch.tokens_BL, 7),
    np.where(batch.weights_BL > 0, batch.targets_BL, 3),
  )
  first = gradients(config, params, batch)
  second = gradients(config, params, batch._replace(tokens_BL=other[0], targets_BL=other[1]))
  assert_close(second, first, 1e-6)
  assert float(first[1]['tokens']) == (batch.segment_ids_BL > 0).sum()
