"""Sampling with a key-value cache: batched prompts of different lengths,
greedy or from the tempered distribution.

B prompts, P prompt tokens (right-padded), S positions of the cache, N new tokens, V vocabulary.

What is drawn with, and how much, are arguments of the compiled program. Its sizes, B, P and S, are
powers of two (S and P at most the context), so that few programs serve all requests; a row does not
depend on what they are filled up with.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moe.config import Config
from moe.data.packing import filled_up
from moe.data.tokenizers import Tokenizer, must_have
from moe.errors import UserError
from moe.model import Transformer, make_cache
from moe.parallel.feeding import batch_parts

# Beyond these a temperature only moves float32 out of its range:
# 0/0 and ∞/∞ would let in what is not allowed.
# At 1e-30 the likeliest token is drawn for certain, at 1e30 every allowed one alike.
_COLDEST, _HOTTEST = 1e-30, 1e30
_LEAST_TOP_P = 1e-30  # float32 makes 0 of less; the most likely token stays at any
# JAX's generator takes 32 bits of a seed: those beyond would repeat the draws of lower ones.
_SEEDS = 2**32
_LEAST_LENGTH = 32  # positions: shorter prompts and caches cost no less


class Trained(Protocol):
  """What generation takes of a run. Parameters on a mesh: inside `run.on_mesh()`."""

  model: Transformer
  params: dict
  tokenizer: Tokenizer | None
  config: Config


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
    """The same choice for `choose`: what does not restrict has top_k = V and top_p = ∞."""
    temperature, top_k, top_p = self
    if temperature:
      temperature = min(max(temperature, _COLDEST), _HOTTEST)
    top_k = min(top_k or vocab_size, vocab_size)
    top_p = max(top_p, _LEAST_TOP_P) if top_p < 1 else np.inf
    return Sampling(np.float32(temperature), np.int32(top_k), np.float32(top_p))


class Completion(NamedTuple):
  """What followed a prompt."""

  prompt: str
  text: str
  tokens: list[int]
  stopped_by: str  # 'end' of the document | 'length' asked for | 'context' full


def generate(
  run: Trained, prompts: Sequence[str], max_new_tokens: int, sampling: Sampling, seed: int = 0
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
    check_unicode(prompt, 'the prompt')
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
  for prompt, prompt_N, ids, count in zip(prompts, prompt_ids, new_BN, counts_B, strict=True):
    ids = ids[:count].tolist()
    ended = bool(ids) and ids[-1] == tokenizer.eos_id
    stopped_by = 'end' if ended else 'length' if count == max_new_tokens else 'context'
    text = text_after(tokenizer, prompt_N, ids[:-1] if ended else ids)
    completions.append(Completion(prompt, text, ids, stopped_by))
  return completions


def check_unicode(text: str, what: str) -> None:
  """UserError for a text with lone surrogates, which no tokenizer takes: so a command line's bytes
  that are no UTF-8 reach Python.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'{what} {text[:30]!a} is not UTF-8 at character {error.start + 1}: give text in UTF-8'
    ) from error


def text_after(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
  """The text of new tokens as it goes on from the prompt:
  decoded by itself it may lose a leading space.
  """
  # Behind BOS some decoders write the space that they add to a text's beginning.
  prompt_ids = [i for i in prompt_ids if i != tokenizer.bos_id]
  before, whole = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *new_ids])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new_ids)


def generate_tokens(
  run: Trained,
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
  positions, request = _asked(run, prompt_ids, max_new_tokens, sampling, seed)
  new_BN, counts_B = _generate(run.model, positions, run.params, request)
  rows = len(prompt_ids)
  return np.asarray(new_BN)[:rows, : request.max_new], np.asarray(counts_B)[:rows]


def stream_tokens(
  run: Trained,
  prompt_ids: Sequence[int],
  max_new_tokens: int,
  sampling: Sampling,
  seed: int,
  end_id: int | None = None,
) -> Iterator[int]:
  """The tokens that `generate_tokens` has for one prompt, each as soon as it is chosen.

  `end_id`: of the token to stop after, EOS unless it is given; no other control piece is drawn.
  """
  positions, request = _asked(run, [prompt_ids], max_new_tokens, sampling, seed, end_id)
  state = _begin(run.model, positions, run.params, request)
  for number in range(int(request.max_new)):
    token = int(state.chosen_B[0])
    yield token
    full = len(prompt_ids) + number >= run.config.data.seq_len
    if token == request.eos_id or full or number + 1 == request.max_new:
      return
    state = _advance(run.model, run.params, request, state)


def _asked(run, prompt_ids, max_new_tokens, sampling, seed, end_id=None):
  """(positions of the cache, `_Request`)."""
  rows, context, vocab_size = len(prompt_ids), run.config.data.seq_len, run.config.model.vocab_size
  longest, shortest = max(map(len, prompt_ids)), min(map(len, prompt_ids))
  # No row can have more: memory is for what can come, not for what was asked.
  max_new_tokens = min(max_new_tokens, context + 1 - shortest)
  padded, positions = (
    min(filled_up(max(length, _LEAST_LENGTH)), context)
    for length in (longest, longest + max_new_tokens)
  )
  filled = filled_up(rows)
  # Every part of a mesh gets as many.
  filled += -filled % batch_parts()
  prompts_BP = np.zeros((filled, padded), np.int32)
  # A row beyond the prompts has one token, and has ended.
  lengths_B = np.ones(len(prompts_BP), np.int32)
  for row, ids in enumerate(prompt_ids):
    prompts_BP[row, : len(ids)], lengths_B[row] = ids, len(ids)
  end_id = run.tokenizer.eos_id if end_id is None else end_id
  return positions, _Request(
    prompts_BP,
    lengths_B,
    np.arange(len(prompts_BP)) >= rows,
    np.int32(max_new_tokens),
    sampling.as_arrays(vocab_size),
    np.int32(end_id),
    _allowed(run.tokenizer, vocab_size, end_id),
    jax.random.key(seed),
  )


class _Request(NamedTuple):
  """All that `_generate` does not compile in."""

  prompts_BP: np.ndarray  # int32
  lengths_B: np.ndarray  # int32
  ended_B: np.ndarray  # bool: before the first new token
  max_new: np.ndarray  # int32
  sampling: Sampling  # as arrays
  eos_id: np.ndarray  # int32: the token that ends a row
  allowed_V: np.ndarray  # bool
  key: jax.Array


def choose(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
  """The next token of every row, int32, each from its own key:
  a row does not depend on its neighbours.

  Greedy, ties go to the lower id; a token as likely as the last that top_k or
  top_p lets in comes in too.

  sampling: `as_arrays`.
  """

  def drawn():
    tempered_BV = logits_BV / sampling.temperature
    is_restricted = (sampling.top_k < logits_BV.shape[1]) | (sampling.top_p < 1)
    # Sorting the vocabulary takes time, and need not be where all of it is let in.
    kept_BV = lax.cond(is_restricted, _restricted, lambda x, _: x, tempered_BV, sampling)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV)

  greedy = lambda: jnp.argmax(logits_BV, axis=-1)
  return lax.cond(sampling.temperature == 0, greedy, drawn).astype(jnp.int32)


def _restricted(logits_BV, sampling):
  """Tempered logits, −∞ where top_k or top_p lets a token not in."""
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


class _State(NamedTuple):
  """Between two tokens. N new ones at most."""

  step: jax.Array  # int32
  new_BN: jax.Array
  counts_B: jax.Array
  cache: Any
  ended_B: jax.Array
  chosen_B: jax.Array  # the next one of each row


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(model: Transformer, positions: int, params: dict, request: _Request):
  """new_BN, N the cache's `positions`, and counts_B.

  Prefill, then one token at a time until every row has ended.
  """
  more = lambda state: (state.step < request.max_new) & ~state.ended_B.all()
  step = lambda state: _after(model, params, request, state)
  state = lax.while_loop(more, step, _prefilled(model, positions, params, request))
  return state.new_BN, state.counts_B


def _prefilled(model, positions, params, request) -> _State:
  """What follows the prompts first."""
  batch, padded = request.prompts_BP.shape
  positions_BP = jnp.broadcast_to(jnp.arange(padded), request.prompts_BP.shape)
  cache = make_cache(model.config.model, batch, positions)
  inputs = request.prompts_BP, positions_BP, cache, request.lengths_B - 1
  chosen_B, cache = _next_tokens(model, params, request, *inputs, 0)
  # As every prompt has a token, no row has more new ones than there are positions.
  new_BN, counts_B = jnp.zeros((batch, positions), jnp.int32), jnp.zeros(batch, jnp.int32)
  return _State(jnp.int32(0), new_BN, counts_B, cache, jnp.asarray(request.ended_B), chosen_B)


def _after(model, params, request, state: _State) -> _State:
  """The chosen tokens noted, and the next ones chosen."""
  context, batch = model.config.data.seq_len, len(request.lengths_B)
  step, new_BN, counts_B, cache, ended_B, chosen_B = state
  new_BN = new_BN.at[:, step].set(jnp.where(ended_B, 0, chosen_B))
  counts_B += ~ended_B
  positions_B = request.lengths_B + step
  ended_B |= (chosen_B == request.eos_id) | (positions_B >= context)
  # A row that has ended goes on in its last slot; what it computes is never used.
  positions_B1 = jnp.minimum(positions_B, context - 1)[:, None]
  inputs = chosen_B[:, None], positions_B1, cache, jnp.zeros(batch, jnp.int32)
  chosen_B, cache = _next_tokens(model, params, request, *inputs, step + 1)
  return _State(step + 1, new_BN, counts_B, cache, ended_B, chosen_B)


def _next_tokens(model, params, request, tokens_BL, positions_BL, cache, last_B, count):
  """(what is chosen after each row's input `last_B`, the cache with the inputs).
  `count`: of the tokens chosen before.
  """
  batch = tokens_BL.shape[0]
  ones_BL = jnp.ones_like(tokens_BL)
  hidden_BLD, _, cache = model.apply({'params': params}, tokens_BL, positions_BL, ones_BL, cache)
  hidden_BD = hidden_BLD[jnp.arange(batch), last_B]
  logits_BV = model.apply({'params': params}, hidden_BD, method='logits')
  row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(request.key, jnp.arange(batch))
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, count)
  logits_BV = jnp.where(request.allowed_V[None], logits_BV, -jnp.inf)
  return choose(logits_BV, request.sampling, keys_B), cache


# One token at a time.
_begin = jax.jit(_prefilled, static_argnums=(0, 1))
_advance = jax.jit(_after, static_argnums=0, donate_argnums=3)


def _allowed(tokenizer: Tokenizer, vocab_size: int, end_id: int) -> np.ndarray:
  """True for tokens that text is made of, and its end:
  not for other control pieces, nor for padding of the head.
  """
  allowed_V = np.zeros(vocab_size, bool)
  allowed_V[: tokenizer.vocab_size] = tokenizer.is_text
  allowed_V[end_id] = True
  return allowed_V
