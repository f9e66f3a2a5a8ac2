"""Conversations to tokens, of which some are learnt from: rows of JSON → messages → parts of a
template → tokens with a bit each → rows of a batch.

conversations  a row of JSON → its messages, checked
base           what a template makes of messages: parts, text or the ids of control pieces
templates      those by name, `open_template`, and which one a run has
jinja          the one that a tokenizer came with, as Hugging Face renders it
encoding       parts → tokens, and which of them are learnt
packing        conversations of every length → rows of a batch, best fit
"""

from moe.data.chat.base import Template
from moe.data.chat.conversations import Message
from moe.data.chat.encoding import prompt_ids
from moe.data.chat.templates import open_template, template_of

__all__ = ['Message', 'Template', 'open_template', 'prompt_ids', 'template_of']
