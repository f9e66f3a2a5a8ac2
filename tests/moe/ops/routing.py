"""Assignments of tokens to experts that stress the ops."""

import numpy as np

# random: any experts; hot: every token chooses expert E−1 and others; few: all tokens choose the
# same K experts; first: all choose experts 0 … K−1.
PATTERNS = ('random', 'hot', 'few', 'first')


def routing(seed: int, tokens: int, num_experts: int, k: int, pattern: str) -> np.ndarray:
  """experts_TK int32. A token's experts are distinct, in any order."""
  generator = np.random.default_rng(seed)
  few = generator.permutation(num_experts)[:k]

  def choose():
    if pattern == 'few':
      return generator.permutation(few)
    if pattern == 'first':
      return np.arange(k)
    others = generator.permutation(num_experts)
    if pattern == 'hot':
      chosen = [num_experts - 1, *others[others != num_experts - 1][: k - 1]]
      return generator.permutation(chosen)
    return others[:k]

  return np.array([choose() for _ in range(tokens)], np.int32).reshape(tokens, k)
