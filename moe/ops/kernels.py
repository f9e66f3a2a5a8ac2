"""How a kernel module describes its kernels: by a tuple KERNELS, in the order in which a program
and its gradient run them.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Kernel(NamedTuple):
  """A Pallas kernel and the matrix products that it makes.
  `moe.planner` knows nothing else about kernels.
  """

  # What compiled programs, profiles and jaxprs call it.
  name: str
  # Whether only gradients run it.
  backward: bool = False
  # How many products: rows × D × F each in experts, L × L × C a head each in attention; 0 if it
  # moves, selects or sums.
  products: int = 0
  # How many of them another kernel has made already.
  again: int = 0
  # Whether JAX appends its options to the name: splash_mha_fwd_residuals.
  suffixed: bool = False

  def is_called(self, name: str) -> bool:
    """Whether `name` names this kernel."""
    return name.startswith(self.name) if self.suffixed else name == self.name


def find(kernels: Iterable[Kernel], name: str) -> Kernel | None:
  """The kernel of that name, or None."""
  return next((kernel for kernel in kernels if kernel.is_called(name)), None)
