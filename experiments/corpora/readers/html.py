"""HTML pages → text: blocks become paragraphs, lists and rows lines, `pre` stays as it is."""

from collections.abc import Callable, Iterator, Sequence

import lxml.etree
import lxml.html

_PARAGRAPHS = {'p', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'pre', 'blockquote', 'table', 'ul', 'ol', 'dl', 'div', 'hr'}
_LINES = {'li', 'dt', 'dd', 'tr', 'br', 'section', 'article', 'center', 'body', 'figure', 'caption', 'thead', 'tbody'}
_CELLS = {'td', 'th'}
_NEVER = '//script|//style|//noscript|//head|//comment()|//processing-instruction()'


def reader(content: str = '//body', without: Sequence[str] = ()) -> Callable[[bytes], Iterator[str]]:
  """A reader of UTF-8 pages. XPaths: `content` is where the text is (first match), `without` what to leave out of it.

  A page without `content` gives no document.
  """
  left_out = '|'.join([_NEVER, *without])

  def read(raw: bytes) -> Iterator[str]:
    raw.decode()  # lxml would take another encoding in silence
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
  for line in ''.join(parts).split('\n'):
    if line.startswith(_VERBATIM):
      lines.append(line.removeprefix(_VERBATIM).rstrip())
    elif stripped := ' '.join(line.split()):
      lines.append(stripped)
    elif lines and lines[-1]:
      lines.append('')
  return '\n'.join(lines).strip('\n') + '\n'


_VERBATIM = '\0'  # marks lines of `pre`; HTML can hold no NUL


def _visit(element, parts, verbatim):
  tag = element.tag
  inside = verbatim or tag == 'pre'
  edge = '' if inside and tag != 'pre' else '\n\n' if tag in _PARAGRAPHS else '\n' if tag in _LINES else ''
  parts.append(edge + (_VERBATIM if tag == 'pre' else ''))
  _add(element.text, parts, inside)
  for child in element:
    if isinstance(child.tag, str):
      _visit(child, parts, inside)
    _add(child.tail, parts, inside)
  parts.append('\n' if tag == 'br' and verbatim else ' ' if tag in _CELLS else edge)


def _add(text, parts, verbatim):
  if text and verbatim:
    parts.append(text.replace('\r', '').replace('\n', '\n' + _VERBATIM))
  elif text:
    parts.append(' '.join(text.split('\n')))
