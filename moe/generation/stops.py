"""Strings that end a completion: they may begin and end anywhere in its tokens."""

from collections.abc import Sequence

from moe.data.tokenizers import Tokenizer


class Stops:
  """Finds stop strings in new tokens, and cuts a text before the first of them."""

  def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
    self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
    longest = max((len(stop.encode()) for stop in self._stops), default=0)
    # A token stands for at least one byte. The tail has one more, which may lose its leading space.
    self._tail = longest + 1

  def are_in(self, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> bool:
    """Whether a stop string ends within the last new token, for calls after every token."""
    if not self._stops or not self._is_in(self._tokenizer.decode(list(new_ids[-self._tail :]))):
      return False
    # The whole decides, because the tail may begin with only a part of a character's bytes.
    return self._is_in(text_after(self._tokenizer, prompt_ids, new_ids))

  def cut(self, text: str) -> str:
    """The text before the first of the stop strings."""
    found = [text.find(stop) for stop in self._stops]
    return text[: min((place for place in found if place >= 0), default=len(text))]

  def _is_in(self, text):
    return any(stop in text for stop in self._stops)


def text_after(tokenizer: Tokenizer, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
  """The text of new tokens as it goes on from the prompt:
  decoded by themselves they may lose a leading space.
  """
  # After BOS some decoders write the space that they add to the beginning of a text.
  prompt_ids = [i for i in prompt_ids if i != tokenizer.bos_id]
  before, whole = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *new_ids])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new_ids)
