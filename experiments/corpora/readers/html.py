"""HTML pages → text: blocks become paragraphs, list items and table rows become lines, and `pre`
stays as it is.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import lxml.etree
import lxml.html

_PARAGRAPHS = {
  'p',
  'h1',
  'h2',
  'h3',
  'h4',
  'h5',
  'h6',
  'pre',
  'blockquote',
  'table',
  'ul',
  'ol',
  'dl',
  'div',
  'hr',
}
_LINES = {
  'li',
  'dt',
  'dd',
  'tr',
  'section',
  'article',
  'center',
  'body',
  'figure',
  'caption',
  'thead',
  'tbody',
}
_CELLS = {'td', 'th'}
_NEVER = '//script|//style|//noscript|//head|//comment()|//processing-instruction()'


def reader(
  content: str = '//body', without: Sequence[str] = ()
) -> Callable[[bytes], Iterator[str]]:
  """A reader of UTF-8 pages. `content` and `without` are XPaths: where the text is (the first
  match), and what to leave out of it.

  A page without `content` gives no document.
  """
  left_out = '|'.join([_NEVER, *without])

  def read(raw: bytes) -> Iterator[str]:
    raw.decode()  # raises for another encoding, which lxml would accept silently
    try:
      page = lxml.html.fromstring(raw, parser=lxml.html.HTMLParser(encoding='utf-8'))
    except lxml.etree.LxmlError as error:
      raise ValueError(f'no HTML: {error}') from error
    for element in page.xpath(left_out):
      if element.getparent() is not None:
        element.drop_tree()
    for root in page.xpath(content)[:1]:
      yield text(root)

  return read


def text(root: lxml.html.HtmlElement) -> str:
  """Text under `root`."""
  parts: list[str] = []
  _visit(root, parts, verbatim=False)
  lines = []
  for line in _BREAKS.sub(_newlines, ''.join(parts)).split('\n'):
    own = line.startswith(_VERBATIM)
    lines.append(line.removeprefix(_VERBATIM).rstrip() if own else ' '.join(line.split()))
  return '\n'.join(lines).strip('\n') + '\n'


# Marks that no HTML text can hold: start of a line of `pre`; end of a line, of a paragraph; <br>.
_VERBATIM, _LINE, _PARAGRAPH, _BR = '\0', '\1', '\2', '\3'
_BREAKS = re.compile(r'\s*[\1-\3][\s\1-\3]*')


def _newlines(breaks):
  return '\n\n' if _PARAGRAPH in breaks[0] or breaks[0].count(_BR) > 1 else '\n'


def _visit(element, parts, verbatim):
  tag = element.tag
  inside = verbatim or tag == 'pre'
  edge = '' if verbatim else _PARAGRAPH if tag in _PARAGRAPHS else _LINE if tag in _LINES else ''
  parts.append(edge + (_VERBATIM if tag == 'pre' else ''))
  _add(element.text, parts, inside)
  for child in element:
    if isinstance(child.tag, str):
      _visit(child, parts, inside)
    _add(child.tail, parts, inside)
  if tag == 'br':
    parts.append('\n' + _VERBATIM if verbatim else _BR)
  else:
    parts.append(' ' if tag in _CELLS else edge)


def _add(text, parts, verbatim):
  if text and verbatim:
    parts.append(text.replace('\r', '').replace('\n', '\n' + _VERBATIM))
  elif text:
    parts.append(' '.join(text.split('\n')))
