"""Generates what follows prompts: many in a batch that is kept full, or one token by token."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moe.data.tokenizers import must_have
from moe.errors import UserError
from moe.generation import weights
from moe.generation.batch import Request, Trained, new_tokens
from moe.generation.sampling import Sampling
from moe.generation.stops import Stops, text_after

__all__ = [
  'ROWS',
  'Completion',
  'Sampling',
  'Trained',
  'check_unicode',
  'generate',
  'generate_tokens',
  'generate_until',
  'only_generating',
  'stream_tokens',
]

# The default number of prompts at once.
ROWS = 16
# JAX's generator takes 32 bits of a seed: larger seeds would repeat the draws of smaller ones.
_SEEDS = 2**32


class Completion(NamedTuple):
  """What followed a prompt."""

  prompt: str
  # Up to the stop string, where one ended it.
  text: str
  tokens: list[int]
  stopped_by: str  # 'end' of the document | 'stop' string | 'length' asked for | 'context' full


def only_generating(run: Trained) -> Trained:
  """The run, to be used for generation alone. On an accelerator, weights laid out for generation
  replace the loaded ones instead of lying beside them. Call it inside the run's mesh.
  """
  if not weights.on_accelerator():
    return run
  return dataclasses.replace(run, params=weights.by_layer(run.config, run.params, release=True))


def generate(
  run: Trained,
  prompts: Sequence[str],
  max_new_tokens: int,
  sampling: Sampling,
  seed: int = 0,
  stop: Sequence[str] = (),
  rows: int = ROWS,
) -> list[Completion]:
  """Completes every prompt by at most `max_new_tokens` tokens. The end of the document, one of the
  strings `stop` or a full context ends a completion earlier.

  The context is data.seq_len, the longest the model was trained on. rows: prompts at once; it
  changes time and memory, not the answer. UserError for arguments out of range, and for a prompt
  that is not Unicode or does not fit into the context.
  """
  sampling.check()
  if not prompts:
    return []
  if max_new_tokens < 1:
    raise UserError(f'max_new_tokens={max_new_tokens} must be at least 1')
  if rows < 1:
    raise UserError(f'{rows} prompts at once: at least 1 is needed')
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
  stops = Stops(tokenizer, stop)
  request = Request(max_new_tokens, sampling, seed, rows)
  new = _until(run, prompt_ids, request, stops)
  return [
    _completion(tokenizer, prompt, ids, new_ids, max_new_tokens, stops)
    for prompt, ids, new_ids in zip(prompts, prompt_ids, new, strict=True)
  ]


def _completion(tokenizer, prompt, prompt_ids, new_ids, max_new_tokens, stops):
  has_ended = new_ids[-1] == tokenizer.eos_id
  whole = text_after(tokenizer, prompt_ids, new_ids[:-1] if has_ended else new_ids)
  text = stops.cut(whole)
  if text != whole:
    stopped_by = 'stop'
  elif has_ended:
    stopped_by = 'end'
  else:
    stopped_by = 'length' if len(new_ids) == max_new_tokens else 'context'
  return Completion(prompt, text, new_ids, stopped_by)


def check_unicode(text: str, what: str) -> None:
  """Raises UserError for a text with lone surrogates, which no tokenizer takes. Python makes them
  from bytes of a command line that are not UTF-8.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'{what} {text[:30]!a} is not UTF-8 at character {error.start + 1}: give text in UTF-8'
    ) from error


def generate_tokens(
  run: Trained,
  prompt_ids: Sequence[Sequence[int]],
  max_new_tokens: int,
  sampling: Sampling,
  seed: int,
  rows: int = ROWS,
) -> list[list[int]]:
  """The new tokens of every prompt, up to and including the end token; see `new_tokens`."""
  request = Request(max_new_tokens, sampling, seed, rows)
  return _until(run, prompt_ids, request, Stops(run.tokenizer, ()))


def generate_until(
  run: Trained, prompt_ids: Sequence[Sequence[int]], request: Request, stop: Sequence[str]
) -> list[str]:
  """The text after each prompt, up to the first of the strings `stop` in it, or to its end."""
  tokenizer, stops = run.tokenizer, Stops(run.tokenizer, stop)
  new = _until(run, prompt_ids, request, stops)
  return [
    _completion(tokenizer, '', ids, new_ids, request.max_new_tokens, stops).text
    for ids, new_ids in zip(prompt_ids, new, strict=True)
  ]


def stream_tokens(
  run: Trained,
  prompt_ids: Sequence[int],
  max_new_tokens: int,
  sampling: Sampling,
  seed: int,
  end_id: int | None = None,
) -> Iterator[int]:
  """Yields the tokens that `generate_tokens` returns for one prompt, each as soon as it is chosen.

  `end_id`: the token to stop after, EOS by default; no other control piece is drawn.
  """
  request = Request(max_new_tokens, sampling, seed, 1, end_id)
  for _, token in new_tokens(run, [prompt_ids], request):
    yield token


def _until(run, prompt_ids, request, stops):
  is_enough = lambda number, new_ids: stops.are_in(prompt_ids[number], new_ids)
  new: list[list[int]] = [[] for _ in prompt_ids]
  for number, token in new_tokens(run, prompt_ids, request._replace(is_enough=is_enough)):
    new[number].append(token)
  return new
