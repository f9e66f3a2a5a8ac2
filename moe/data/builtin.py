"""A corpus that every machine has: the standard library of its own CPython,
its documentation, worked arithmetic.

Domains, and the share of sequences that each is drawn for:
  code        0.50  standard-library source files, 9 MB
  docs        0.35  pydoc's topics, and the docstrings of each module on one page, 3 MB
  arithmetic  0.15  pages of worked problems from a seeded generator (arithmetic.py), 2 MB
Natural text dominates; arithmetic is learnt soon and is there to show a domain that differs.

A document's origin decides whether it is held out: a source file's path, a topic's name, a page's
number.
A file's docstrings go with its source, so nothing held out in one domain is trained on in another.
The text is a function of the CPython version.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moe.data import arithmetic
from moe.errors import UserError

WEIGHTS = {'code': 0.5, 'docs': 0.35, 'arithmetic': 0.15}

# Tests repeat themselves; the rest are tables made by programs.
_LEFT_OUT = {
  'test',
  'tests',
  'idle_test',
  '__pycache__',
  'site-packages',
  'encodings',
  'pydoc_data',
  '__phello__',
}
_TABLES = {'html/entities.py', 'msilib/schema.py', 'msilib/sequence.py', 'lib2to3/pgen2/token.py'}
# Prefixes every origin. With this value the held-out 2% of files are close to 2% of bytes
# too, on CPython 3.11 to 3.13.
_SALT = 20
_FEWEST_BYTES = 200_000  # of source; a stripped-down Python has less


class BuiltinDocument(NamedTuple):
  text: str
  domain: str
  origin: str  # documents of one origin are held out together


def documents() -> Iterator[BuiltinDocument]:
  """All documents. UserError if this Python has no source of its standard library."""
  root = Path(sysconfig.get_path('stdlib'))
  size = 0
  for path in source_files(root):
    name = path.relative_to(root).as_posix()
    try:
      text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):  # some hold text of other encodings on purpose
      continue
    if not text.strip():
      continue
    size += len(text.encode())
    yield BuiltinDocument(text, 'code', f'{_SALT} {name}')
    if page := docstring_page(text, name):
      yield BuiltinDocument(page, 'docs', f'{_SALT} {name}')
  if size < _FEWEST_BYTES:
    raise UserError(
      f'data.sources=builtin: {root} holds {size} bytes of Python source, too little: install the '
      'full standard library (Debian: libpython3-stdlib), or give files of your own in data.sources'
    )
  for topic, text in topics():
    yield BuiltinDocument(text, 'docs', f'{_SALT} topic {topic}')
  for number in range(arithmetic.NUM_PAGES):
    yield BuiltinDocument(
      arithmetic.page(number), 'arithmetic', f'{_SALT} arithmetic page {number}'
    )


def source_files(root: Path) -> list[Path]:
  """The standard library's own .py files under `root`, sorted,
  without tests, tables and files that a distribution has added.
  """
  files = []
  for path in root.rglob('*.py'):
    parts = path.relative_to(root).parts
    own = parts[0].removesuffix('.py') in sys.stdlib_module_names and not parts[0].startswith(
      '_sysconfigdata'
    )
    if own and not _LEFT_OUT.intersection(parts) and '/'.join(parts) not in _TABLES:
      files.append(path)
  return sorted(files, key=lambda path: path.relative_to(root).parts)


def docstring_page(source: str, name: str) -> str:
  """The docstrings of a module under their headings, as `pydoc` would order them;
  '' if there are none to speak of.
  """
  try:
    tree = ast.parse(source)
  except SyntaxError:
    return ''
  module = name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
  parts = []

  def visit(node, path):
    for child in node.body:
      if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        dotted = f'{path}.{child.name}'
        if text := ast.get_docstring(child):
          parts.append(f'{_heading(child, dotted)}\n{_indented(text)}\n')
        if isinstance(child, ast.ClassDef):
          visit(child, dotted)

  if text := ast.get_docstring(tree):
    parts.append(f'{text}\n')
  visit(tree, module)
  page = f'Module {module}\n\n' + '\n'.join(parts)
  return page if len(page) > 200 else ''


def topics() -> Iterator[tuple[str, str]]:
  """(name, text) of pydoc's topics. Topics quote each other whole;
  each paragraph stays only in the longest.
  """
  try:
    from pydoc_data.topics import topics as texts
  except ImportError:  # Debian's smallest layouts lack it; the docstrings remain
    return
  seen = set()
  for name, text in sorted(texts.items(), key=lambda item: (-len(item[1]), item[0])):
    kept = []
    for paragraph in text.strip('\n').split('\n\n'):
      normal = ' '.join(paragraph.split())
      if normal and normal not in seen:
        kept.append(paragraph)
      if len(normal) > 40:  # shorter ones are headings, which may recur
        seen.add(normal)
    if sum(map(len, kept)) > max(200, len(text) // 2):  # less is a scatter of headings
      yield name, '\n\n'.join(kept) + '\n'


def _heading(node, dotted):
  if isinstance(node, ast.ClassDef):
    bases = ', '.join(map(ast.unparse, node.bases))
    return f'class {dotted}({bases})' if bases else f'class {dotted}'
  return f'{dotted}({ast.unparse(node.args)})'


def _indented(text):
  return '\n'.join(f'    {line}' if line.strip() else '' for line in text.splitlines())
