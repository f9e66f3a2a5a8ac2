"""Strings that end a completion: they may begin and end anywhere in its tokens."""

from collections.abc import Sequence

from moe.data.tokenizers import Tokenizer


class Stops:
  """Whether new tokens have said one of some strings, and the text before it."""

  def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
    self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
    longest = max((len(stop.encode()) for stop in self._stops), default=0)
    # A token stands for at least one byte. One more, which may lose its leading space.
    self._tail = longest + 1

  def are_in(self, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> bool:
    """Whether the last of the new tokens ends a stop string, or goes on from its end."""
    if not self._stops or not self._is_in(self._tokenizer.decode(list(new_ids[-self._tail :]))):
      return False
    # Bytes at the tail's beginning may be a part of a character only.
    return self._is_in(text_after(self._tokenizer, prompt_ids, new_ids))

  def cut(self, text: str) -> str:
    """What stands before the first of the stop strings."""
    found = [text.find(stop) for stop in self._stops]
    return text[: min((place for place in found if place >= 0), default=len(text))]

  def _is_in(self, text):
    return any(stop in text for stop in self._stops)


def text_after(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
  """The text of new tokens as it goes on from the prompt:
  decoded by itself it may lose a leading space.
  """
  # Behind BOS some decoders write the space that they add to a text's beginning.
  prompt_ids = [i for i in prompt_ids if i != tokenizer.bos_id]
  before, whole = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *new_ids])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new_ids)
