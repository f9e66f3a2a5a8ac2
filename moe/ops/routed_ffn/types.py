"""What every implementation of the routed FFN takes."""

from typing import NamedTuple

import jax

# Tokens, of which reading the weights of their experts takes nearly all of the time.
FEW = 32


class ExpertWeights(NamedTuple):
  """The three matrices of E SwiGLU experts.

  uint16: the bits of bfloat16 (`moe.ops.rows.as_bits`). Those `xla` takes, for decoding: nothing is
  differentiated in them.
  """

  gate_EDF: jax.Array
  up_EDF: jax.Array
  down_EFD: jax.Array
