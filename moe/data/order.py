"""Orders that are functions of a seed alone, in any release of NumPy."""

import hashlib

import numpy as np


def permutation(count: int, seed: int) -> np.ndarray:
  """A permutation (count,) int64, by the ranks of a hash (splitmix64) of seed and index,
  so that no release of NumPy can change it.
  """
  with np.errstate(over='ignore'):
    x = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return np.argsort(x ^ (x >> np.uint64(31)), kind='stable')


def seed_of(seed: int, purpose: str) -> int:
  """A 64-bit seed for `purpose`. Grain adds the epoch's number to a shuffle's seed,
  so the seeds of domains must lie far apart.
  """
  return int.from_bytes(
    hashlib.blake2b(f'{seed} {purpose}'.encode(), digest_size=8).digest(), 'big'
  )
