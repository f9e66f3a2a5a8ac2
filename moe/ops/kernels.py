"""What a kernel module says of its kernels: KERNELS,
in the order in which a program and its gradient run them.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Kernel(NamedTuple):
  """A Pallas kernel and the matrix products that it makes.
  `moe.planner` knows kernels by nothing else.
  """

  # What compiled programs, profiles and jaxprs call it.
  name: str
  # Only gradients run it.
  backward: bool = False
  # Of rows × D × F in experts, of L × L × C a head in attention; 0 where it moves, selects or sums.
  products: int = 0
  # Those of them that another kernel has made before.
  again: int = 0
  # JAX adds its options to the name: splash_mha_fwd_residuals.
  suffixed: bool = False

  def is_called(self, name: str) -> bool:
    """Whether a kernel of that name is this one."""
    return name.startswith(self.name) if self.suffixed else name == self.name


def find(kernels: Iterable[Kernel], name: str) -> Kernel | None:
  """The kernel of that name."""
  return next((kernel for kernel in kernels if kernel.is_called(name)), None)
