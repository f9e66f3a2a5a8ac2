"""Checksums are the same computed by hand, on the device, over parts in any layout,
and over a mesh's shards.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.storage import checksums


def by_hand(array) -> int:
  bits = array.reshape(-1).view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)
  return sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**32


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16, np.int32])
@pytest.mark.parametrize('shape', [(), (7,), (4, 6), (2, 4, 6), (2, 4, 6, 5)])
def test_checksums_are_equal_however_they_are_taken(shape, dtype):
  array = np.random.default_rng(0).normal(0, 1000, shape).astype(dtype)
  expected = by_hand(np.asarray(array))
  assert checksums.of_arrays({'x': jnp.asarray(array)}) == {"['x']": expected}
  assert checksums.of_arrays({'x': array}) == {"['x']": expected}
  assert int(checksums._of_leaves({'x': jnp.asarray(array)})['x']) == expected
  strides = checksums.strides_of(shape)
  axes = list(range(len(shape)))[::-1]
  part = lambda box: checksums.of_part(
    np.ascontiguousarray(array[box].transpose(axes)),
    [each.start for each in box][::-1],
    strides[::-1],
  )
  if len(shape) > 1:
    rest = tuple(slice(0, n) for n in shape[2:])
    boxes = [
      (slice(a, a + 2), slice(b, b + 3), *rest) for a in range(0, shape[0], 2) for b in (0, 3)
    ]
    boxes = [
      tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, shape, strict=True))
      for box in boxes
    ]
    assert sum(map(part, boxes)) % 2**32 == expected


@pytest.mark.parametrize('spec', [('a', None), (None, 'b'), ('a', 'b'), (('a', 'b'), None), ()])
def test_a_mesh_changes_nothing(spec):
  array = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'))
  lies = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
  assert checksums.of_arrays([lies]) == checksums.of_arrays([array])
