"""Checksums of what a checkpoint holds: arrays where they lie, and JSON."""

import json
import zlib

import jax
import jax.numpy as jnp
from jax import lax


def of_arrays(tree) -> dict[str, int]:
  """{path: checksum}: the sum over elements of bits · an odd number for their index, modulo 2³².

  Computed where the arrays lie. Integer sums do not depend on order, hence not on devices either.
  """
  flat = {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {name: int(value) for name, value in jax.device_get(_of_leaves(flat)).items()}


def of_json(value) -> int:
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def of_bytes(content: bytes) -> int:
  return zlib.crc32(content)


def difference(tree, expected: dict[str, int]) -> str:
  """'', or which array is not the one whose checksum is expected."""
  different = [name for name, value in of_arrays(tree).items() if expected.get(name) != value]
  return f'the bytes of {different[0]} are not those that were saved' if different else ''


@jax.jit
def _of_leaves(leaves):
  def checksum(x):
    bits, index = lax.bitcast_convert_type(x, jnp.uint32), jnp.uint32(0)
    # In place of a flat array, which would gather what devices share.
    for axis, size in enumerate(x.shape):
      index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (2 * index + 1)).sum(dtype=jnp.uint32)

  return {name: checksum(leaf) for name, leaf in leaves.items()}
