"""Routers against the paper's equations, and the guarantees of the hash table."""

import functools
import hashlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import KEYS
from moe.routers import ROUTERS
from moe.routers.hash import HashRouter, hash_table
from moe.routers.softmax import SoftmaxRouter
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, small_config

pytestmark = pytest.mark.usefixtures('quick_compile')


def test_the_names_that_a_config_takes_are_those_of_the_list():
  assert KEYS['moe.router'].type == Literal[tuple(ROUTERS)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def route(kind, config, centroids_DE, u_BLD, token_ids_BL, is_token_BL):
  params = {'experts': centroids_DE} if kind is SoftmaxRouter else {}
  return kind(config).apply({'params': params}, u_BLD, token_ids_BL, is_token_BL)


def _batch(config, rows=3, length=7, seed=0):
  generator = np.random.default_rng(seed)
  u_BLD = generator.normal(size=(rows, length, config.model.d_model)).astype(np.float32)
  ids_BL = generator.integers(0, config.model.vocab_size, (rows, length)).astype(np.int32)
  is_token_BL = generator.random((rows, length)) < 0.7
  is_token_BL[-1] = False  # a row of padding
  return u_BLD, ids_BL, is_token_BL


@pytest.mark.parametrize('k', [1, 3, 6])
def test_softmax_router(k):
  config = small_config(**{'moe.experts_per_token': k})
  u_BLD, ids_BL, is_token_BL = _batch(config)
  centroids_DE = np.random.default_rng(1).normal(size=(16, 6)).astype(np.float32) / 2
  gates_BLK, experts_BLK, stats = route(
    SoftmaxRouter, config, centroids_DE, u_BLD, ids_BL, is_token_BL
  )
  assert (gates_BLK.dtype, experts_BLK.dtype) == (jnp.float32, jnp.int32)

  counts, sums, entropy, z = np.zeros((3, 6)), np.zeros((3, 6)), np.zeros(3), np.zeros(3)
  for b, t in np.ndindex(3, 7):
    gates, chosen, affinities = oracles.route(exact(u_BLD[b, t]), exact(centroids_DE), k)
    assert experts_BLK[b, t].tolist() == chosen
    assert_close(gates_BLK[b, t], gates, 1e-5)
    if is_token_BL[b, t]:  # padding is routed, but does not count
      counts[b, chosen] += 1
      sums[b] += affinities
      entropy[b] -= sum(s * np.log(s) for s in affinities)
      z[b] += oracles.log_sum_exp(exact(centroids_DE).T @ exact(u_BLD[b, t])) ** 2
  assert (stats.counts_BE == counts).all()
  assert_close(tuple(stats[1:4]), (sums, entropy, z), 1e-5)


def test_routing_by_hand():
  """Centroids are ln 2 · (1, 0, 1, 2) on the first of two features, and 0 on the second.

  So u = (1, ·) has affinities (2, 1, 2, 4) / 9, and u = (−1, ·) has (2, 4, 2, 1) / 9. Experts 0 and
  2 always tie: the lower index comes first. u = (0, ·) ties everywhere.
  """
  config = small_config(
    **{'moe.num_experts': 4, 'model.d_model': 2, 'model.num_heads': 2, 'moe.experts_per_token': 2}
  )
  centroids_DE = np.log(2) * np.array([[1, 0, 1, 2], [0, 0, 0, 0]], np.float32)
  u_BLD = np.array([[[1, 5], [-1, 5], [0, 5]]], np.float32)
  ids_BL, real_BL = np.zeros((1, 3), np.int32), np.array([[True, True, False]])
  gates_BLK, experts_BLK, stats = route(SoftmaxRouter, config, centroids_DE, u_BLD, ids_BL, real_BL)
  assert experts_BLK.tolist() == [[[3, 0], [1, 0], [0, 1]]]
  # Gates are not renormalised: they add up to 6/9, not to 1.
  assert_close(gates_BLK, np.array([[[4, 2], [4, 2], [2.25, 2.25]]]) / 9, 1e-6)
  assert stats.counts_BE.tolist() == [[2, 1, 0, 1]]
  assert_close(stats.probability_sums_BE, np.array([[4, 5, 4, 5]]) / 9, 1e-6)


def test_bfloat16_inputs_are_routed_in_float32():
  """Logits 1 and 1 + 2⁻¹⁰ are equal in bfloat16, where the tie would go to expert 0."""
  config = small_config(
    **{'moe.num_experts': 2, 'moe.experts_per_token': 1, 'model.dtype': 'bfloat16'}
  )
  centroids_DE = np.zeros((16, 2), np.float32)
  centroids_DE[0] = 1, 1 + 2**-10
  u_BLD = jnp.zeros((1, 1, 16), jnp.bfloat16).at[0, 0, 0].set(1)
  args = u_BLD, np.zeros((1, 1), np.int32), np.ones((1, 1), bool)
  assert route(SoftmaxRouter, config, centroids_DE, *args)[1].tolist() == [[[1]]]


@pytest.mark.parametrize('k', [1, 2])
def test_hash_router(k):
  config = small_config(**{'moe.router': 'hash', 'moe.experts_per_token': k})
  u_BLD, ids_BL, is_token_BL = _batch(config)
  gates_BLK, experts_BLK, stats = route(HashRouter, config, None, u_BLD, ids_BL, is_token_BL)
  table_VK = hash_table(32, 6, k, seed=0)
  assert (gates_BLK == 1).all()
  assert (experts_BLK == table_VK[ids_BL]).all()
  counts = np.zeros((3, 6))
  for b, t in zip(*np.nonzero(is_token_BL)):
    counts[b, table_VK[ids_BL[b, t]]] += 1
  assert (stats.counts_BE == counts).all()
  assert_close(stats.probability_sums_BE, counts / k, 1e-6)
  assert_close(stats.entropy_sums_B, np.log(k) * is_token_BL.sum(axis=1), 1e-6)
  assert (stats.z_sums_B == 0).all()


@pytest.mark.parametrize(
  ('vocab', 'num_experts', 'k'),
  [(8000, 16, 1), (1003, 16, 1), (5, 16, 2), (1003, 7, 7), (1003, 6, 3)],
)
def test_hash_table_is_balanced_and_distinct(vocab, num_experts, k):
  table_VK = hash_table(vocab, num_experts, k, seed=3)
  assert (table_VK.shape, table_VK.dtype) == ((vocab, k), np.int32)
  for choice in range(k):
    counts_E = np.bincount(table_VK[:, choice], minlength=num_experts)
    assert len(counts_E) == num_experts
    assert counts_E.max() - counts_E.min() <= 1
  assert all(len(set(row)) == k for row in table_VK.tolist())


def test_hash_table_never_changes():
  checksum = lambda seed: hashlib.sha256(hash_table(8000, 16, 1, seed).tobytes()).hexdigest()[:16]
  assert checksum(0) == checksum(0) == '1ae9b9b041bbc83f'
  assert checksum(1) != checksum(0)
  blocks = hash_table(8000, 16, 1, seed=0).reshape(-1, 16)
  assert len({tuple(block) for block in blocks}) == len(blocks)  # every 16 ids are dealt anew
