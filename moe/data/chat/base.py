"""What every template makes of a conversation: text, and control pieces by their ids.

What a user writes is text always: the spelling of a control piece in it makes none.
"""

import abc
from collections.abc import Sequence
from typing import NamedTuple

from moe.data.chat.conversations import Message


class Part(NamedTuple):
  """A stretch of a rendered conversation."""

  said: str | int  # text, or the id of a control piece
  learnt: bool = False  # the assistant's own: of a reply and its end


class Template(abc.ABC):
  """How conversations are written down."""

  # The control piece that ends a turn of the assistant, where generation stops.
  end_id: int

  @abc.abstractmethod
  def parts(self, messages: Sequence[Message], asks: bool = False) -> list[Part]:
    """All of a conversation; and, if it `asks`, what comes before the assistant's next reply.

    BadRow for a conversation that the template refuses.
    """
