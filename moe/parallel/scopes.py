"""Scope names that tell the planner what a compiled program cannot.
Each is written and read here.
"""

import contextlib
import re

import jax

_FURTHER_ROUNDS = 'further_rounds'


def runs(*shares: float) -> contextlib.AbstractContextManager:
  """A scope around a cond or switch: how often each branch is taken, as a mean over stages and
  ticks.
  """
  return jax.named_scope(f'runs({",".join(f"{share:.6f}" for share in shares)})')


def branch_shares(name: str) -> list[float]:
  """The shares that `runs` wrote into the name of a cond or switch, or []."""
  match = re.search(r'runs\(([\d.,]+)\)\)*(?:/(?:cond|switch)\b[^/]*)?(?:"|$)', name)
  return [float(share) for share in match[1].split(',')] if match else []


def further_rounds() -> contextlib.AbstractContextManager:
  """A scope around the loop over an exchange's further rounds: balanced routing needs none."""
  return jax.named_scope(_FURTHER_ROUNDS)


def is_further_rounds(name: str) -> bool:
  """Whether a loop of this name is that of `further_rounds`."""
  return f'{_FURTHER_ROUNDS}/while' in name
