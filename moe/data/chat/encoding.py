"""Parts of a template → tokens, and which of them are learnt. N tokens of a conversation.

No token spans the boundary of a reply: the prompt and the reply are encoded apart, so that training
has the same tokens before a reply as generation.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe.data.chat.base import Part, Template
from moe.data.chat.conversations import Message
from moe.data.tokenizers import Lost, Tokenizer


class Encoded(NamedTuple):
  """A conversation in tokens, control pieces included."""

  tokens_N: np.ndarray  # int32
  learnt_N: np.ndarray  # bool: tokens of a reply, its end included
  text: str  # of the replies, end to end
  lost: Lost  # what the tokens lose of `text`


def encode(
  template: Template,
  tokenizer: Tokenizer,
  conversations: Sequence[Sequence[Message]],
  num_threads: int = 1,
) -> list[Encoded]:
  """Each conversation in tokens. BadRow for one that the template refuses."""
  return encode_parts(tokenizer, list(map(template.parts, conversations)), num_threads)


def encode_parts(
  tokenizer: Tokenizer, rendered: Sequence[Sequence[Part]], num_threads: int = 1
) -> list[Encoded]:
  """As `encode`, for conversations that a template has turned into parts already."""
  joined = [_joined(parts) for parts in rendered]
  texts = [part.said for parts in joined for part in parts if isinstance(part.said, str)]
  encoded = iter(tokenizer.encode_arrays(texts, num_threads))
  return [_encoded(tokenizer, parts, encoded) for parts in joined]


def prompt_ids(template: Template, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
  """The tokens before the assistant's next reply."""
  (encoded,) = encode_parts(tokenizer, [template.parts(messages, asks=True)])
  return encoded.tokens_N.tolist()


def _joined(parts):
  """Joins adjacent texts that are both learnt or both not: they are encoded together."""
  kinds = itertools.groupby(parts, lambda part: (isinstance(part.said, str), part.learnt))
  made = []
  for (is_text, learnt), group in kinds:
    if is_text:
      text = ''.join(part.said for part in group)
      made += [Part(text, learnt)] if text else []
    else:
      made += group
  return made


def _encoded(tokenizer, parts, encoded):
  tokens, learnt, texts, lost = [], [], [], Lost(0, 0)
  for said, is_learnt in parts:
    ids_N = next(encoded) if isinstance(said, str) else np.array([said], np.int32)
    if is_learnt and isinstance(said, str):
      texts.append(said)
      lost = lost.plus(tokenizer.lost(said, ids_N))
    tokens.append(ids_N)
    learnt.append(np.full(len(ids_N), is_learnt))
  lost = Lost(min(lost.documents, 1), lost.bytes)
  return Encoded(np.concatenate(tokens), np.concatenate(learnt), ''.join(texts), lost)
