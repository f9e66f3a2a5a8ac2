"""The kernels of every op on each platform, as their modules declare them."""

from collections.abc import Sequence

from moe.ops.attention import pallas_gpu as attention_gpu
from moe.ops.attention import pallas_tpu as attention_tpu
from moe.ops.combine import pallas_gpu as combine_gpu
from moe.ops.combine import pallas_tpu as combine_tpu
from moe.ops.dispatch import pallas_gpu as dispatch_gpu
from moe.ops.dispatch import pallas_tpu as dispatch_tpu
from moe.ops.grouped_matmul import pallas_gpu as grouped_matmul_gpu
from moe.ops.grouped_matmul import pallas_tpu as grouped_matmul_tpu
from moe.ops.kernels import Kernel, find
from moe.ops.routed_ffn import pallas_gpu as routed_ffn_gpu
from moe.ops.routed_ffn import pallas_tpu as routed_ffn_tpu
from moe.ops.router import pallas_gpu as router_gpu
from moe.ops.router import pallas_tpu as router_tpu

TPU = {
  'dispatch': dispatch_tpu.KERNELS,
  'combine': combine_tpu.KERNELS,
  'grouped_matmul': grouped_matmul_tpu.KERNELS,
  'routed_ffn': routed_ffn_tpu.KERNELS,
  'router': router_tpu.KERNELS,
  'attention': attention_tpu.KERNELS,
}
GPU = {
  'dispatch': dispatch_gpu.KERNELS,
  'combine': combine_gpu.KERNELS,
  'grouped_matmul': grouped_matmul_gpu.KERNELS,
  'routed_ffn': routed_ffn_gpu.KERNELS,
  'router': router_gpu.KERNELS,
  'attention': attention_gpu.KERNELS,
}


def of_direction(kernels: Sequence[Kernel], direction: str) -> list[Kernel]:
  """The kernels that a program of that direction runs: all for 'backward', which includes the
  forward; otherwise only those of the forward.
  """
  return [kernel for kernel in kernels if direction == 'backward' or not kernel.backward]


def of_op(op: str, name: str) -> Kernel | None:
  """The kernel of that name in `op`, on either platform; None if the op has no such kernel."""
  return find((*TPU[op], *GPU[op]), name)
