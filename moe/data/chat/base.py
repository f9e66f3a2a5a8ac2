"""What every template turns a conversation into: text, and control pieces by their ids.

What a user writes is always text: the spelling of a control piece in it does not become one.
"""

import abc
from collections.abc import Sequence
from typing import NamedTuple

from moe.data.chat.conversations import Message


class Part(NamedTuple):
  """A stretch of a rendered conversation."""

  said: str | int  # text, or the id of a control piece
  learnt: bool = False  # the assistant's own: part of a reply or its end


class Template(abc.ABC):
  """How conversations are written down."""

  # The control piece that ends a turn of the assistant, where generation stops.
  end_id: int

  @abc.abstractmethod
  def parts(self, messages: Sequence[Message], asks: bool = False) -> list[Part]:
    """The whole conversation, followed if it `asks` by what opens the assistant's next reply.

    BadRow for a conversation that the template refuses.
    """
