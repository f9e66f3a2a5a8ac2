"""What every implementation of the routed FFN takes."""

from typing import NamedTuple

import jax
from jax import lax

from moe.ops.quantized import Matrix

# Up to this many tokens, reading the weights of their experts takes nearly all of the time.
FEW = 32


class ExpertWeights(NamedTuple):
  """The three matrices of E SwiGLU experts.

  uint16 matrices hold the bits of bfloat16 (`moe.ops.rows.as_bits`): only `xla` takes them, for
  decoding. Every implementation takes quantized ones. Neither can be differentiated.
  """

  gate_EDF: Matrix
  up_EDF: Matrix
  down_EFD: Matrix


def part_of(weights: ExpertWeights, first: jax.Array, num_experts: int) -> ExpertWeights:
  """A copy of the weights of E experts from `first` on, where they are not read in place."""
  cut = lambda w: lax.dynamic_slice_in_dim(w, first, num_experts)
  return jax.tree.map(cut, weights)
