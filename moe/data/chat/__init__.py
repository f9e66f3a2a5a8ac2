"""Conversations to tokens, some of which are learnt: rows of JSON → messages → parts of a template
→ tokens, each with a bit for learnt → rows of a batch.

conversations  a row of JSON → its messages, checked
base           what a template turns messages into: parts, each a text or a control piece's id
templates      the templates with a name, `open_template`, and which template a run has
jinja          the template that a tokenizer came with, as Hugging Face renders it
encoding       parts → tokens, and which of them are learnt
packing        conversations of any length → rows of a batch, by best fit
"""

from moe.data.chat.base import Template
from moe.data.chat.conversations import Message
from moe.data.chat.encoding import prompt_ids
from moe.data.chat.templates import open_template, template_of

__all__ = ['Message', 'Template', 'open_template', 'prompt_ids', 'template_of']
