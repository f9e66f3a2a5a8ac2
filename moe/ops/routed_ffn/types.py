"""What every implementation of the routed FFN takes."""

from typing import NamedTuple

import jax


class ExpertWeights(NamedTuple):
  """The three matrices of E SwiGLU experts."""

  gate_EDF: jax.Array
  up_EDF: jax.Array
  down_EFD: jax.Array
