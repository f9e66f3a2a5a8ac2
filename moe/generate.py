"""Sampling with a key-value cache: batched prompts of different lengths,
greedy or from the tempered distribution.

B prompts, P prompt tokens (right-padded), N new tokens, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moe.config import Config
from moe.data.tokenizer import Tokenizer, must_have
from moe.errors import UserError
from moe.model import Transformer, make_cache
from moe.run import Run

# Beyond these a temperature only moves float32 out of its range:
# 0/0 and ∞/∞ would let in what is not allowed.
# At 1e-30 the likeliest token is drawn for certain, at 1e30 every allowed one alike.
_COLDEST, _HOTTEST = 1e-30, 1e30
_LEAST_TOP_P = 1e-30  # float32 makes 0 of less; the most likely token stays at any
# JAX's generator takes 32 bits of a seed: those beyond would repeat the draws of lower ones.
_SEEDS = 2**32


class Sampling(NamedTuple):
  """How the next token is chosen; the restrictions apply one after the other."""

  temperature: float = 0.0  # 0: greedy
  top_k: int = 0  # only the k most likely tokens; 0: all
  top_p: float = 1.0  # only the fewest tokens that together have this probability

  def check(self) -> None:
    """UserError for a value out of range."""
    if not 0 <= self.temperature < float('inf'):
      raise UserError(f'temperature={self.temperature} must be at least 0 (0 is greedy)')
    if self.top_k < 0:
      raise UserError(f'top_k={self.top_k} must be at least 0 (0 is no limit)')
    if not 0 < self.top_p <= 1:
      raise UserError(f'top_p={self.top_p} must be above 0 and at most 1')


class Completion(NamedTuple):
  """What followed a prompt."""

  prompt: str
  text: str
  tokens: list[int]
  stopped_by: str  # 'end' of the document | 'length' asked for | 'context' full


def generate(
  run: Run, prompts: Sequence[str], max_new_tokens: int, sampling: Sampling, seed: int = 0
) -> list[Completion]:
  """A completion of every prompt, at most `max_new_tokens` long;
  a document's end or a full context stops earlier.

  The context is data.seq_len, the longest the model was trained on.
  UserError for a prompt that leaves no room in it.
  """
  sampling.check()
  if not prompts:
    return []
  if max_new_tokens < 1:
    raise UserError(f'max_new_tokens={max_new_tokens} must be at least 1')
  if not 0 <= seed < _SEEDS:
    raise UserError(f'seed={seed} must be at least 0 and at most {_SEEDS - 1}')
  for prompt in prompts:
    _check_unicode(prompt)
  tokenizer, context = must_have(run.tokenizer), run.config.data.seq_len
  prompt_ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
  for prompt, ids in zip(prompts, prompt_ids, strict=True):
    if len(ids) > context:
      raise UserError(
        f'the prompt {prompt[:30]!r}… has {len(ids)} tokens with its beginning-of-text token; '
        f'the context is {context} (data.seq_len)'
      )
  new_BN, counts_B = generate_tokens(run, prompt_ids, max_new_tokens, sampling, seed)
  completions = []
  for prompt, ids, count in zip(prompts, new_BN, counts_B, strict=True):
    ids = ids[:count].tolist()
    ended = bool(ids) and ids[-1] == tokenizer.eos_id
    stopped_by = 'end' if ended else 'length' if count == max_new_tokens else 'context'
    text = _text_after(tokenizer, prompt, ids[:-1] if ended else ids)
    completions.append(Completion(prompt, text, ids, stopped_by))
  return completions


def _check_unicode(prompt):
  """A command line's bytes that are no UTF-8 reach Python as lone surrogates,
  which no tokenizer takes.
  """
  try:
    prompt.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'the prompt {prompt[:30]!a} is not UTF-8 at character {error.start + 1}: give text in UTF-8'
    ) from error


def _text_after(tokenizer, prompt, new_ids):
  """The text of new tokens as it goes on from the prompt:
  decoded by itself it may lose a leading space.
  """
  prompt_ids = tokenizer.encode(prompt)
  before, whole = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *new_ids])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new_ids)


def generate_tokens(
  run: Run,
  prompt_ids: Sequence[Sequence[int]],
  max_new_tokens: int,
  sampling: Sampling,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """new_BN int32 and how many of each row count: up to and including the end token,
  or as many as the context holds.

  A context of S positions yields up to S + 1 − length new tokens:
  the last one needs no position of its own.
  """
  longest, shortest = max(map(len, prompt_ids)), min(map(len, prompt_ids))
  # No row can have more: memory is for what can come, not for what was asked.
  max_new_tokens = min(max_new_tokens, run.config.data.seq_len + 1 - shortest)
  padded = -(-longest // 32) * 32  # few shapes, few compilations
  prompts_BP = np.zeros((len(prompt_ids), min(padded, run.config.data.seq_len)), np.int32)
  for row, ids in zip(prompts_BP, prompt_ids, strict=True):
    row[: len(ids)] = ids
  lengths_B = np.array([len(ids) for ids in prompt_ids], np.int32)
  allowed_V = _allowed(run.tokenizer, run.config.model.vocab_size)
  new_BN, counts_B = _generate(
    run.config,
    max_new_tokens,
    sampling,
    run.tokenizer.eos_id,
    run.params,
    prompts_BP,
    lengths_B,
    allowed_V,
    jax.random.key(seed),
  )
  return np.asarray(new_BN), np.asarray(counts_B)


def choose(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
  """The next token of every row, int32, each from its own key:
  a row does not depend on its neighbours.

  Greedy, ties go to the lower id; a token as likely as the last that top_k or
  top_p lets in comes in too.
  """
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / min(max(sampling.temperature, _COLDEST), _HOTTEST)
  descending_BV = jnp.sort(logits_BV, axis=-1, descending=True)
  if 0 < sampling.top_k < logits_BV.shape[1]:
    logits_BV = jnp.where(
      logits_BV < descending_BV[:, sampling.top_k - 1, None], -jnp.inf, logits_BV
    )
    descending_BV = descending_BV.at[:, sampling.top_k :].set(-jnp.inf)
  if sampling.top_p < 1:
    probabilities_BV = jax.nn.softmax(descending_BV)
    # A token stays while those more likely than it have not reached top_p:
    # the most likely one always does.
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    top_p = max(sampling.top_p, _LEAST_TOP_P)
    least_B1 = jnp.where(before_BV < top_p, descending_BV, jnp.inf).min(axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
  config: Config, max_new, sampling, eos_id, params, prompts_BP, lengths_B, allowed_V, key
):
  """Prefill, then one token at a time until every row has ended."""
  model = Transformer(config)
  batch, padded = prompts_BP.shape
  context = config.data.seq_len

  def next_tokens(tokens_BL, positions_BL, cache, last_B, count):
    ones_BL = jnp.ones_like(tokens_BL)
    hidden_BLD, _, cache = model.apply({'params': params}, tokens_BL, positions_BL, ones_BL, cache)
    hidden_BD = hidden_BLD[jnp.arange(batch), last_B]
    logits_BV = model.apply({'params': params}, hidden_BD, method='logits')
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, count)
    return choose(jnp.where(allowed_V[None], logits_BV, -jnp.inf), sampling, keys_B), cache

  def more(state):
    step, ended_B = state[0], state[4]
    return (step < max_new) & ~ended_B.all()

  def step(state):
    step, new_BN, counts_B, cache, ended_B, chosen_B = state
    new_BN = new_BN.at[:, step].set(jnp.where(ended_B, 0, chosen_B))
    counts_B += ~ended_B
    positions_B = lengths_B + step
    ended_B |= (chosen_B == eos_id) | (positions_B >= context)
    # A row that has ended goes on in its last slot; what it computes is never used.
    positions_B1 = jnp.minimum(positions_B, context - 1)[:, None]
    chosen_B, cache = next_tokens(
      chosen_B[:, None], positions_B1, cache, jnp.zeros(batch, jnp.int32), step + 1
    )
    return step + 1, new_BN, counts_B, cache, ended_B, chosen_B

  row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
  positions_BP = jnp.broadcast_to(jnp.arange(padded), prompts_BP.shape)
  cache = make_cache(config.model, batch, min(context, padded + max_new))
  chosen_B, cache = next_tokens(prompts_BP, positions_BP, cache, lengths_B - 1, 0)
  new_BN = jnp.zeros((batch, max_new), jnp.int32)
  start = jnp.int32(0), new_BN, jnp.zeros(batch, jnp.int32), cache, jnp.zeros(batch, bool), chosen_B
  _, new_BN, counts_B, *_ = lax.while_loop(more, step, start)
  return new_BN, counts_B


def _allowed(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
  """True for tokens that text is made of, and its end:
  not for other control pieces, nor for padding of the head.
  """
  allowed_V = np.zeros(vocab_size, bool)
  allowed_V[: tokenizer.vocab_size] = tokenizer.is_text
  allowed_V[tokenizer.eos_id] = True
  return allowed_V
