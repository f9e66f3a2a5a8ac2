"""A tokenizer's own chat template: `chat_template` of its tokenizer_config.json, in Jinja."""

import functools
from collections.abc import Mapping, Sequence

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moe.data.tokenizers import CONFIG_FILE, Tokenizer
from moe.errors import UserError, one_line


def template(tokenizer: Tokenizer) -> str:
  """The template's text. UserError where the tokenizer has none."""
  found = tokenizer.settings.get('chat_template')
  if isinstance(found, list):  # several, by name
    found = {each.get('name'): each.get('template') for each in found}.get('default')
  if not isinstance(found, str) or not found.strip():
    raise UserError(
      f"--chat_template: the run's tokenizer has no chat_template in its {CONFIG_FILE}: leave the "
      'flag out, or convert or train with a tokenizer that has one'
    )
  return found


def render(
  tokenizer: Tokenizer,
  text: str,
  messages: Sequence[Mapping[str, str]],
  add_generation_prompt: bool,
) -> str:
  """A conversation as the template writes it. UserError for what the template refuses."""
  pieces = tokenizer.pieces
  try:
    return _compiled(text).render(
      messages=messages,
      add_generation_prompt=add_generation_prompt,
      bos_token=pieces[tokenizer.bos_id],
      eos_token=pieces[tokenizer.eos_id],
    )
  except jinja2.TemplateError as error:
    raise UserError(
      f"--chat_template: the tokenizer's template fails: {one_line(error)}"
    ) from error


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
  def raise_exception(message):
    raise jinja2.TemplateError(message)

  # As transformers sets it up, which templates are written for.
  environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  environment.globals['raise_exception'] = raise_exception
  return environment.from_string(text)
