"""How the next token is chosen: greedy, or drawn from what temperature, top_k and top_p leave."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moe.data.tokenizers import Tokenizer
from moe.errors import UserError

# Beyond these a temperature only moves float32 out of its range:
# 0/0 and ∞/∞ would let in tokens that are not allowed.
# At 1e-30 the likeliest token is certain, at 1e30 all allowed tokens are equally likely.
_COLDEST, _HOTTEST = 1e-30, 1e30
_LEAST_TOP_P = 1e-30  # float32 rounds less to 0; the most likely token stays at any top_p


class Sampling(NamedTuple):
  """How the next token is chosen; the restrictions apply one after the other."""

  temperature: float | np.float32 = 0.0  # 0: greedy
  top_k: int | np.int32 = 0  # only the k most likely tokens; 0: all
  top_p: float | np.float32 = 1.0  # only the fewest tokens that together have this probability

  def check(self) -> None:
    """UserError for a value out of range."""
    if not 0 <= self.temperature < float('inf'):
      raise UserError(f'temperature={self.temperature} must be at least 0 (0 is greedy)')
    if self.top_k < 0:
      raise UserError(f'top_k={self.top_k} must be at least 0 (0 is no limit)')
    if not 0 < self.top_p <= 1:
      raise UserError(f'top_p={self.top_p} must be above 0 and at most 1')

  def as_arrays(self, vocab_size: int) -> 'Sampling':
    """The same choice as `choose` takes it: top_k = V and top_p = ∞ where there is no limit."""
    temperature, top_k, top_p = self
    if temperature:
      temperature = min(max(temperature, _COLDEST), _HOTTEST)
    top_k = min(top_k or vocab_size, vocab_size)
    top_p = max(top_p, _LEAST_TOP_P) if top_p < 1 else np.inf
    return Sampling(np.float32(temperature), np.int32(top_k), np.float32(top_p))


class Drawing(NamedTuple):
  """All that a program draws with. It is not compiled into the program."""

  sampling: Sampling  # as arrays
  allowed_V: jax.Array  # bool
  key: jax.Array

  @classmethod
  def of(
    cls, sampling: Sampling, tokenizer: Tokenizer, vocab_size: int, end_id: int, seed: int
  ) -> 'Drawing':
    """Draws only tokens of text and `end_id`: no other control pieces, and not the padding of the
    output head.
    """
    allowed_V = np.zeros(vocab_size, bool)
    allowed_V[: tokenizer.vocab_size] = tokenizer.is_text
    allowed_V[end_id] = True
    arrays = jax.device_put((sampling.as_arrays(vocab_size), allowed_V))
    return cls(*arrays, jax.random.key(seed))


def draw(
  logits_BV: jax.Array, drawing: Drawing, numbers_B: jax.Array, counts_B: jax.Array
) -> jax.Array:
  """The next token of every row, int32. Its key comes from the seed, the prompt's own number and
  how many tokens were drawn for it before, so neither neighbours nor the prompt's row matter.
  """
  fold_in = jax.vmap(jax.random.fold_in)
  keys_B = fold_in(jnp.broadcast_to(drawing.key, numbers_B.shape), numbers_B)
  logits_BV = jnp.where(drawing.allowed_V[None], logits_BV, -jnp.inf)
  return choose(logits_BV, drawing.sampling, fold_in(keys_B, counts_B))


def choose(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
  """The next token of every row, int32, each from its own key:
  a row does not depend on its neighbours.

  With greedy choice, ties go to the lower id. A token as likely as the last that top_k or
  top_p lets in comes in, too.

  sampling: from `as_arrays`.
  """

  def drawn():
    tempered_BV = logits_BV / sampling.temperature
    is_restricted = (sampling.top_k < logits_BV.shape[1]) | (sampling.top_p < 1)
    # Sorting the vocabulary takes time, and is not needed where all of it is let in.
    kept_BV = lax.cond(is_restricted, _restricted, lambda x, _: x, tempered_BV, sampling)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV)

  greedy = lambda: jnp.argmax(logits_BV, axis=-1)
  return lax.cond(sampling.temperature == 0, greedy, drawn).astype(jnp.int32)


def _restricted(logits_BV, sampling):
  """Tempered logits, with −∞ for tokens that top_k or top_p does not let in."""
  descending_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  last_B1 = lax.dynamic_slice_in_dim(descending_BV, sampling.top_k - 1, 1, axis=1)
  logits_BV = jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)
  rank_V = jnp.arange(logits_BV.shape[1])
  descending_BV = jnp.where((rank_V < sampling.top_k)[None], descending_BV, -jnp.inf)
  probabilities_BV = jax.nn.softmax(descending_BV)
  # A token stays while those more likely than it have not reached top_p:
  # the most likely one always does.
  before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
  stays_BV = before_BV < sampling.top_p
  least_B1 = jnp.where(stays_BV, descending_BV, jnp.inf).min(axis=-1, keepdims=True)
  return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
