"""Runs the exchange of a routed FFN alone, on eight devices, with NaN in the padding."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.layers.experts import stored_experts
from moe.ops.routed_ffn import ExpertWeights
from moe.parallel import mesh as mesh_lib
from moe.parallel.experts.ffn import expert_parallel_ffn
from tests.moe.parallel.cases import distance, ragged_emulated
from tests.small import small_config

SEQUENCES, LENGTH, K, D, F, DEVICES = 16, 10, 2, 16, 4, 8


class Case(NamedTuple):
  """One exchange: `experts` split over `devices` of the eight; the rest of the mesh is `data`."""

  experts: int
  devices: int
  # Experts that tokens choose most often. Empty: every device's tokens choose all equally often.
  often: tuple[int, ...]
  # 'some' includes the last two sequences whole; 'none' and 'all' are the other values.
  padding: str = 'some'
  transport: str = 'padded'
  buffer: float = 1.0
  none: float = 0.0  # the share of choices that are of no expert


CASES = {
  'a device often': Case(9, 4, often=(0, 1, 2)),
  'a device often, all-gather': Case(9, 4, often=(0, 1, 2), transport='all_gather'),
  'a device often, ragged': Case(9, 4, often=(0, 1, 2), transport='ragged'),
  'one expert of each device often': Case(9, 4, often=(0, 3, 6)),
  'fewer experts than devices, balanced': Case(4, 8, often=(), padding='none', buffer=1.5),
  'choices of no expert': Case(9, 4, often=(), none=0.4, buffer=1.5),
  'choices of no expert, ragged': Case(9, 8, often=(), none=0.4, transport='ragged', buffer=2.0),
  'nothing but padding': Case(9, 4, often=(0, 1, 2), padding='all'),
}


class Inputs(NamedTuple):
  """What the exchange takes beside the weights; padding's rows of x are NaN."""

  x_BLD: np.ndarray
  gates_BLK: np.ndarray
  experts_BLK: np.ndarray
  is_token_BL: np.ndarray


def inputs(case: Case) -> Inputs:
  generator = np.random.default_rng(0)
  shape = SEQUENCES, LENGTH
  if case.often:
    p = np.where(np.isin(np.arange(case.experts), case.often), 20.0, 1.0)
    one = lambda: generator.choice(case.experts, K, replace=False, p=p / p.sum())
    experts_BLK = np.stack([one() for _ in range(SEQUENCES * LENGTH)]).reshape(*shape, K)
  else:
    experts_BLK = np.arange(SEQUENCES * LENGTH * K).reshape(*shape, K) % case.experts
  experts_BLK = np.where(generator.random(experts_BLK.shape) < case.none, case.experts, experts_BLK)
  length_B = np.full(SEQUENCES, LENGTH if case.padding == 'none' else 0)
  if case.padding == 'some':
    length_B[:-2] = generator.integers(1, LENGTH + 1, SEQUENCES - 2)
  is_token_BL = np.arange(LENGTH)[None] < length_B[:, None]
  x_BLD = np.where(is_token_BL[:, :, None], generator.normal(size=(*shape, D)), np.nan)
  gates_BLK = generator.random((*shape, K))
  return Inputs(
    x_BLD.astype(np.float32),
    gates_BLK.astype(np.float32),
    experts_BLK.astype(np.int32),
    is_token_BL,
  )


def weights(case: Case) -> ExpertWeights:
  generator, e = np.random.default_rng(1), case.experts
  draw = lambda *shape: generator.normal(0, 0.3, shape).astype(np.float32)
  return ExpertWeights(draw(e, D, F), draw(e, D, F), draw(e, F, D))


def every_expert(x_BLD, gates_BLK, weights, experts_BLK):
  """Returns Σ_k gates[k] · FFN_experts[k](x), computing every expert for every token."""
  each = lambda w: jnp.einsum('bld,edf->blef', x_BLD, w)
  hidden_BLEF = jax.nn.silu(each(weights.gate_EDF)) * each(weights.up_EDF)
  gates_BLE = (jax.nn.one_hot(experts_BLK, weights.gate_EDF.shape[0]) * gates_BLK[..., None]).sum(
    axis=2
  )
  return jnp.einsum('blef,efd,ble->bld', hidden_BLEF, weights.down_EFD, gates_BLE)


@functools.cache
def measure(case: Case) -> dict:
  """Returns the telemetry, how far output and gradients are from `every_expert`,
  and the largest value that either has in padding.
  """
  config = small_config(
    **{
      'moe.num_experts': case.experts,
      'data.batch_size': SEQUENCES,
      'mesh.data': DEVICES // case.devices,
    },
    **{
      'mesh.expert': case.devices,
      'mesh.transport': case.transport,
      'mesh.receive_buffer': case.buffer,
      'ops.implementation': 'reference',
    },
  )
  given, w = inputs(case), weights(case)
  mask_BL1 = given.is_token_BL[:, :, None]
  dy_BLD = np.random.default_rng(2).normal(size=given.x_BLD.shape).astype(np.float32)

  def exchanged(x_BLD, gates_BLK, w):
    return expert_parallel_ffn(
      x_BLD, gates_BLK, given.experts_BLK, given.is_token_BL, w, stored_experts(w), config
    )

  def run(*operands):
    y_BLD, pull, exchange = jax.vjp(exchanged, *operands, has_aux=True)
    return y_BLD, *pull(dy_BLD), exchange

  with mesh_lib.use(mesh_lib.make_mesh(config), config.mesh.zero), ragged_emulated():
    *results, exchange = jax.device_get(jax.jit(run)(given.x_BLD, given.gates_BLK, w))
  x_BLD = np.where(mask_BL1, given.x_BLD, 0)
  y_BLD, pull = jax.vjp(lambda *o: every_expert(*o, given.experts_BLK), x_BLD, given.gates_BLK, w)
  d_x_BLD, d_gates_BLK, d_w = pull(dy_BLD * mask_BL1)  # nothing reads the output of padding
  truth = y_BLD * mask_BL1, d_x_BLD, d_gates_BLK * mask_BL1, d_w
  return {
    'distance': distance(tuple(results), jax.device_get(truth)),
    'in_padding': float(max(np.abs(np.where(mask_BL1, 0, a)).max() for a in results[:3])),
    **{name: float(value) for name, value in exchange._asdict().items()},
  }
