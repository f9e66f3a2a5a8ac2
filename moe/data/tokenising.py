"""Documents of a corpus → tokens, for text or conversations (data.format). N tokens a document."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moe.config import DataConfig
from moe.data.chat import conversations, encoding
from moe.data.chat.templates import open_template
from moe.data.corpus import Document
from moe.data.readers import BadRow
from moe.data.tokenizers import Lost, Tokenizer


class Tokenised(NamedTuple):
  """A document as prepared data stores it."""

  tokens_N: np.ndarray  # integers: text's without BOS and EOS, all of a conversation
  text: bytes  # UTF-8: the document, or only the assistant's replies of a conversation
  lost: Lost  # what the tokens lose of `text`
  learnt_N: np.ndarray | None = None  # bool: which tokens of a conversation are learnt


class Tokeniser:
  """Tokenises documents as the keys of `data` say."""

  def __init__(self, data: DataConfig, tokenizer: Tokenizer, num_threads: int, is_lossy: bool):
    """`is_lossy`: whether the tokenizer may lose text, which is then counted for format=text.

    UserError if data.chat_template cannot be used.
    """
    self._data, self._tokenizer = data, tokenizer
    self._num_threads, self._is_lossy = num_threads, is_lossy
    self.is_chat = data.format == 'chat'
    self._template = open_template(data.chat_template, tokenizer) if self.is_chat else None

  def __call__(
    self, documents: Sequence[Document], bad: list[BadRow]
  ) -> Iterator[tuple[Document, Tokenised]]:
    """Each document with its tokens. BadRow for a conversation that the template refuses; with
    data.bad_rows=skip it goes to `bad` instead.
    """
    yield from self._chats(documents, bad) if self.is_chat else self._texts(documents)

  def _texts(self, documents):
    texts = [document.text for document in documents]
    encoded = self._tokenizer.encode_arrays(texts, self._num_threads)
    for document, tokens_N in zip(documents, encoded, strict=True):
      lost = self._tokenizer.lost(document.text, tokens_N) if self._is_lossy else Lost(0, 0)
      yield document, Tokenised(tokens_N, document.text.encode(), lost)

  def _parts(self, document):
    messages = conversations.from_text(document.text)
    parts = self._template.parts(messages)
    if not any(part.learnt for part in parts):
      begin = messages[0].content[:40]
      raise BadRow(
        f'data.chat_template={self._data.chat_template}: nothing to learn in the conversation that '
        f'begins {begin!r}: none of it is marked by {{% generation %}}'
      )
    return parts

  def _chats(self, documents, bad):
    kept, rendered = [], []
    for document in documents:
      try:
        rendered.append(self._parts(document))
      except BadRow as error:
        if self._data.bad_rows == 'refuse':
          raise
        bad.append(error)
      else:
        kept.append(document)
    encoded = encoding.encode_parts(self._tokenizer, rendered, self._num_threads)
    for document, each in zip(kept, encoded, strict=True):
      yield document, Tokenised(each.tokens_N, each.text.encode(), each.lost, each.learnt_N)
