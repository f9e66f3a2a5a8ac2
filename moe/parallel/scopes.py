"""Names of scopes that say to planners what a compiled program cannot."""

import contextlib

import jax


def runs(*shares: float) -> contextlib.AbstractContextManager:
  """Around a cond or switch: how often each branch is taken, on the mean of stages and ticks."""
  return jax.named_scope(f'runs({",".join(f"{share:.6f}" for share in shares)})')
