"""Measures of specialisation, from counts of choices: NumPy, float64.

N MoE layers, E routed experts, G groups of tokens (domains, or token classes), X sequences.
A choice is one (token, expert) pair: a token makes K of them in every layer.
"""

from typing import NamedTuple

import numpy as np


class Information(NamedTuple):
  """What one choice of a token tells about the domain of its text, in every layer."""

  bits_N: np.ndarray  # I(expert; domain), as counted
  # The mean I(expert; domain) when the same sequences get their domains at random.
  chance_N: np.ndarray
  # (bits − chance) / H(domain): 0 no specialisation by domain, 1 a choice gives the domain away.
  share_N: np.ndarray


def by_group(choices_NXE: np.ndarray, group_X: np.ndarray, num_groups: int) -> np.ndarray:
  """counts_NGE int64: the choices of the sequences of each group. Every group_X is in [0, G)."""
  counts_GNE = np.zeros((num_groups, choices_NXE.shape[0], choices_NXE.shape[2]), np.int64)
  np.add.at(counts_GNE, group_X, choices_NXE.swapaxes(0, 1))
  return counts_GNE.swapaxes(0, 1)


def load(counts: np.ndarray) -> np.ndarray:
  """counts (…, E) → load over the mean load, (…, E): 1 everywhere is even.
  NaN where there are no choices.
  """
  return shares(counts) * counts.shape[-1]


def effective_experts(counts: np.ndarray) -> np.ndarray:
  """counts (…, E) → exp(H(load)), (…): the number of equally loaded experts with this entropy.
  Between 1 and E.
  """
  return 2 ** entropy(shares(counts))


def mutual_information(counts_NGE: np.ndarray) -> np.ndarray:
  """bits_N: I(expert; group) = H(expert) + H(group) − H(expert, group),
  for a choice drawn at random.

  This plug-in estimate is biased upwards, the more so the fewer the choices; see `information`.
  Groups weigh by their counts; for equal weights pass
  counts_NGE / counts_NGE.sum(axis=2, keepdims=True).
  """
  p_NGE = counts_NGE / counts_NGE.sum(axis=(1, 2), keepdims=True)
  joint_N = entropy(p_NGE.reshape(p_NGE.shape[0], -1))
  return entropy(p_NGE.sum(axis=1)) + entropy(p_NGE.sum(axis=2)) - joint_N


def information(
  choices_NXE: np.ndarray,
  domain_X: np.ndarray,
  num_domains: int,
  shuffles: int = 100,
  seed: int = 0,
) -> Information:
  """I(expert; domain), beside what chance alone shows.

  Tokens of one text have much in common, so corrections for the number of tokens (Miller–Madow)
  are far too small. Whole sequences are shuffled over the domains instead, each domain keeping
  its number of sequences. The shuffle separates sequences of one long document, so it understates
  chance where a domain has few documents.
  """
  generator = np.random.default_rng(seed)
  counts_NGE = by_group(choices_NXE, domain_X, num_domains)
  measured = lambda domain_X: mutual_information(by_group(choices_NXE, domain_X, num_domains))
  bits_N = mutual_information(counts_NGE)
  chance_N = np.mean([measured(generator.permutation(domain_X)) for _ in range(shuffles)], axis=0)
  domain_bits_N = entropy(shares(counts_NGE.sum(axis=2)))
  # One domain has no entropy to explain: the share is then 0, not 0 / 0.
  share_N = np.divide(
    bits_N - chance_N, domain_bits_N, out=np.zeros_like(bits_N), where=domain_bits_N > 0
  )
  return Information(bits_N, chance_N, share_N)


def co_activation(pairs_NEE: np.ndarray, tokens: int | None = None) -> np.ndarray:
  """lift_NEE = P(i and j) / (P(i) P(j) c), c = (mean of K² − K) E / (mean of K)² (E − 1):
  which experts are chosen together.

  Args:
    pairs_NEE: tokens that chose both experts; on the diagonal, the expert.
    tokens: how many there are; None if every token chose the same number of experts.

  P is over tokens. c is P(i and j) / (P(i) P(j)) where every token's K of E are drawn at random
  without repetition, so that a lift of 1 means independent, 2 twice as often. NaN on the diagonal,
  where an expert is never chosen, and where K is 1.
  """
  experts, counts_NE = pairs_NEE.shape[-1], np.diagonal(pairs_NEE, axis1=1, axis2=2)
  whole = lambda x_N: x_N[:, None, None]
  # A token adds K to the sum of the diagonal and K² to the sum of all entries.
  sum_N11, squares_N11 = whole(counts_NE.sum(axis=1)), whole(pairs_NEE.sum(axis=(1, 2)))
  tokens_N11 = _ratio(sum_N11**2, squares_N11) if tokens is None else np.float64(tokens)
  by_chance_N11 = _ratio(
    tokens_N11 * (squares_N11 - sum_N11) * experts, sum_N11**2.0 * (experts - 1)
  )
  p_NE = counts_NE / np.broadcast_to(tokens_N11, sum_N11.shape)[:, 0]
  lift_NEE = _ratio(pairs_NEE / tokens_N11, p_NE[:, :, None] * p_NE[:, None, :] * by_chance_N11)
  return np.where(np.eye(experts, dtype=bool)[None], np.nan, lift_NEE)


def shares(counts: np.ndarray) -> np.ndarray:
  """counts (…, E) → their shares of the sum over E. NaN where that is zero."""
  return _ratio(counts, counts.sum(axis=-1, keepdims=True))


def entropy(p: np.ndarray) -> np.ndarray:
  """p (…, E) → its entropy in bits, (…)."""
  return -np.where(p == 0, 0.0, p * np.log2(np.where(p == 0, 1.0, p))).sum(axis=-1)


def _ratio(a, b):
  """a / b in float64, NaN where b is zero."""
  a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
  return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)
