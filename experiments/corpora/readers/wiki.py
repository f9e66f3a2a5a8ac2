"""A MediaWiki export → the text of its articles."""

import re
import xml.etree.ElementTree
from collections.abc import Iterator

import mwparserfromhell
from mwparserfromhell.nodes import Tag, Wikilink

_NO_TEXT = {'ref', 'references', 'table', 'gallery', 'timeline', 'imagemap', 'math', 'score'}
_NO_ARTICLE = re.compile(r'(file|image|category|[a-z]{2,3}(-[a-z]+)?)\s*:', re.IGNORECASE)
# Only lists of links and sources follow these headings.
_APPENDIX = re.compile(
  r'^=+ *(see also|references|notes|footnotes|external links|further reading'
  r'|bibliography|sources|citations) *=+ *$',
  re.IGNORECASE | re.MULTILINE,
)


def read(raw: bytes) -> Iterator[str]:
  """Articles under their titles: no redirects, templates, tables, notes, pictures or appendices."""
  try:
    root = xml.etree.ElementTree.fromstring(raw)
  except xml.etree.ElementTree.ParseError as error:
    raise ValueError(f'no MediaWiki export: {error}') from error
  space = root.tag.partition('}')[0] + '}' if '}' in root.tag else ''
  for page in root.iter(f'{space}page'):
    source = page.findtext(f'{space}revision/{space}text') or ''
    if page.findtext(f'{space}ns') == '0' and page.find(f'{space}redirect') is None and source:
      yield f'{page.findtext(f"{space}title")}\n\n{_article(source)}'


def _article(source):
  if appendix := _APPENDIX.search(source):
    source = source[: appendix.start()]
  code = mwparserfromhell.parse(source, skip_style_tags=True)
  for node in code.filter(recursive=True, matches=_is_no_text, forcetype=(Tag, Wikilink)):
    try:
      code.remove(node)
    except ValueError:  # already removed with a node around it
      continue
  text = code.strip_code(normalize=True, collapse=True)
  text = re.sub(r"'{2,}|__[A-Z]+__", '', text)
  text = re.sub(r'^[*#:;]* +|^[*#:;]+', '', text, flags=re.MULTILINE)
  # What templates in parentheses leave behind.
  text = re.sub(r'\( *[,;]? *\)| +(?=[,.;])', '', text)
  return text.strip() + '\n'


def _is_no_text(node):
  if isinstance(node, Tag):
    return str(node.tag).strip().lower() in _NO_TEXT
  return isinstance(node, Wikilink) and bool(_NO_ARTICLE.match(str(node.title).strip()))
