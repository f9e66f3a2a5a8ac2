"""Blocks of memory, matrix products and calls of Pallas kernels for Triton.

Arrays stay in global memory and a kernel names the elements of a block itself, by the index of
every row and column: gathered rows and the ragged ends of groups are no special cases, and no
dimension is padded in memory. Blocks are powers of two, at least 16 each way, as Triton's products
demand; elements outside an array are masked.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moe.ops.implementation import interpret

# Bytes for operands in flight, out of a block's 163 KiB on an A100 and 227 on a H100.
_SHARED_MEMORY = 160 * 1024
# Parts of the names of GPUs whose products read operands from registers (mma.sync). From Hopper on
# data-centre GPUs read them from shared memory (wgmma).
_OUT_OF_REGISTERS = ('A10', 'A30', 'A40', 'A800', 'L4', 'RTX', 'T4', 'V100')


class Span(NamedTuple):
  """Indices along one dimension of an array. Those not `inside` are read as zero and
  never written; None means that all are inside.
  """

  index: jax.Array  # int32 (n,)
  inside: jax.Array | None = None  # bool (n,)


def span(start: jax.Array | int, size: int, limit: jax.Array | int) -> Span:
  """`size` indices from `start`; those below `limit` are inside.
  With a static limit, starts must be multiples of `size`.
  """
  index = start + jnp.arange(size, dtype=jnp.int32)
  whole = isinstance(limit, int) and limit % size == 0
  return Span(index, None if whole else index < limit)


def load(ref, *spans: Span, leading: tuple = ()) -> jax.Array:
  """The block of ref[*leading] where the spans (one or two) cross."""
  at, mask = _block(ref, spans, leading)
  return plgpu.load(at) if mask is None else plgpu.load(at, mask=mask, other=0)


def store(ref, block: jax.Array, *spans: Span, leading: tuple = ()) -> None:
  at, mask = _block(ref, spans, leading)
  plgpu.store(at, block.astype(ref.dtype), mask=mask)


def _block(ref, spans, leading):
  shape = tuple(s.index.shape[0] for s in spans)
  along = lambda x, axis: lax.expand_dims(x, [i for i in range(len(spans)) if i != axis])
  at = ref.at[(*leading, *(along(s.index, axis) for axis, s in enumerate(spans)))]
  masks = [
    jnp.broadcast_to(along(s.inside, axis), shape)
    for axis, s in enumerate(spans)
    if s.inside is not None
  ]
  return at, functools.reduce(jnp.logical_and, masks) if masks else None


def dot(a: jax.Array, b: jax.Array, a_axis: int = 1, b_axis: int = 0) -> jax.Array:
  """Σ over the given axes, float32: on the tensor cores for bfloat16, never
  rounded to TF32 for float32.
  """
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((a_axis,), (b_axis,)), ((), ()))
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def out_of_registers() -> bool:
  """Whether products on the GPU that kernels are traced for read operands from registers, which
  leaves fewer for sums.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  kind = device.device_kind if device else jax.devices()[0].device_kind
  return any(name in kind for name in _OUT_OF_REGISTERS)


def power_of_two(extent: int, largest: int) -> int:
  """The smallest power of two, from 16 on, that holds `extent`; at most `largest`."""
  return max(16, min(largest, pl.next_power_of_2(extent)))


def tile_size(extent: int, largest: int) -> int:
  """The power of two that covers `extent` with the least padding; of equals the largest.
  At least 64 if `extent` is.
  """
  if extent < 64:
    return power_of_two(extent, largest)
  sizes = [size for size in (512, 256, 128, 64) if size <= largest] or [largest]
  return min(sizes, key=lambda size: (pl.cdiv(extent, size) * size, -size))


def stages(bytes_in_flight: int, most: int) -> int:
  """How many iterations' operands fit into shared memory at once, at most `most`."""
  return max(1, min(most, _SHARED_MEMORY // bytes_in_flight))


def call(
  name: str,
  kernel: Callable,
  programs: int,
  outputs: Sequence[jax.ShapeDtypeStruct],
  *operands: jax.Array,
  num_warps: int = 4,
  num_stages: int = 2,
  flops: int = 0,
) -> list[jax.Array]:
  """Runs kernel(program, *operand_refs, *output_refs) for each of `programs`;
  neighbours run at the same time.
  """

  def body(*refs):
    kernel(pl.program_id(0), *refs)

  body.__name__ = name  # what the compiled kernel is called
  moved = sum(x.size * x.dtype.itemsize for x in (*operands, *outputs))
  return pl.pallas_call(
    body,
    out_shape=list(outputs),
    grid=(programs,),
    compiler_params=plgpu.CompilerParams(num_warps=num_warps, num_stages=num_stages),
    cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved),
    interpret=interpret(),
    name=name,
  )(*operands)
