"""Checksums of what a checkpoint holds: arrays where they lie, and JSON."""

import json
import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils


def of_arrays(tree) -> dict[str, int]:
  """{path: checksum}: Σ bits · (2 · index + 1) over the elements of an array, modulo 2³².

  Computed where the arrays lie. Integer sums do not depend on order, hence not on devices either.
  Every process that has parts of the arrays must call it.
  """
  flat = {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  # NumPy sums these: XLA:CPU would hold them all once more, twice as wide, and take ten times as
  # long.
  in_memory = {name: leaf for name, leaf in flat.items() if _is_in_memory(leaf)}
  elsewhere = {name: leaf for name, leaf in flat.items() if name not in in_memory}
  sums = jax.device_get(_of_leaves(elsewhere)) | _of_shards(in_memory)
  return {name: int(sums[name]) for name in flat}


def of_part(part: np.ndarray, begins: Sequence[int], strides: Sequence[int]) -> int:
  """What a box of an array adds to the array's checksum, which is the sum over its boxes,
  modulo 2³².

  An element's index is a sum of one term per dimension. So it is enough to sum the elements, for
  each dimension, over all the others.

  Args:
    part: the box, its dimensions in any order; fastest where it is contiguous.
    begins: the first index along each dimension.
    strides: elements of the whole array, row-major, between neighbours along each dimension.
  """
  first = sum(begin * stride for begin, stride in zip(begins, strides, strict=True))
  if not part.ndim:
    part, strides = part.reshape(1), [1]
  bits = part.view(_BITS[part.dtype.itemsize])
  # NumPy's sums are fast over two axes: the last one, and all before it merged into one.
  rows = bits.reshape(-1, bits.shape[-1])
  by_row, by_column = (rows.sum(axis=axis, dtype=np.uint32) for axis in (1, 0))
  lead = by_row.reshape(bits.shape[:-1])
  total = (2 * first + 1) * int(by_row.sum(dtype=np.uint64)) + 2 * strides[-1] * _moment(by_column)
  for dimension, stride in enumerate(strides[:-1]):
    others = tuple(other for other in range(lead.ndim) if other != dimension)
    total += 2 * stride * _moment(lead.sum(axis=others, dtype=np.uint64))
  return total % 2**32


def strides_of(shape: Sequence[int]) -> list[int]:
  """Elements between neighbours along each dimension of a row-major array."""
  return [math.prod(shape[dimension + 1 :]) for dimension in range(len(shape))]


def of_json(value) -> int:
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def of_bytes(content: bytes) -> int:
  return zlib.crc32(content)


def difference(tree, expected: dict[str, int]) -> str:
  """'', or a message that names an array whose checksum is not the expected one."""
  different = [name for name, value in of_arrays(tree).items() if expected.get(name) != value]
  return f'the bytes of {different[0]} are not those that were saved' if different else ''


# Unsigned types by width in bytes.
_BITS = {2: np.uint16, 4: np.uint32}


def _is_in_memory(leaf):
  return not isinstance(leaf, jax.Array) or next(iter(leaf.devices())).platform == 'cpu'


def _of_shards(leaves):
  """Checksums of arrays in this machine's memory. If a process has only parts of them, the
  checksums of the parts are added up over processes.
  """
  sums, whole = [], True
  for leaf in leaves.values():
    if isinstance(leaf, jax.Array):
      whole &= leaf.is_fully_addressable
      parts = [(each.index, each.data) for each in leaf.addressable_shards if not each.replica_id]
    else:
      parts = [((slice(None),) * np.ndim(leaf), leaf)]
    strides, total = strides_of(np.shape(leaf)), 0
    for index, part in parts:
      total += of_part(np.asarray(part), [each.start or 0 for each in index], strides)
    sums.append(total % 2**32)
  if not whole:
    gathered_PS = multihost_utils.process_allgather(np.array(sums, np.uint32))
    sums = gathered_PS.sum(axis=0, dtype=np.uint32).tolist()
  return dict(zip(leaves, sums, strict=True))


def _moment(sums):
  """Σ i · sums[i], modulo 2⁶⁴."""
  return int((sums.astype(np.uint64) * np.arange(len(sums), dtype=np.uint64)).sum())


@jax.jit
def _of_leaves(leaves):
  def checksum(x):
    bits = lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.uint32(0)
    # The array is not flattened: that would gather what is spread over devices.
    for axis, size in enumerate(x.shape):
      index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (2 * index + 1)).sum(dtype=jnp.uint32)

  return {name: checksum(leaf) for name, leaf in leaves.items()}
