"""Formal mathematics and problems as text."""

import re
from collections.abc import Callable, Iterator

from moe.data import arithmetic

# A heading is a comment whose text stands between two rules of one of these kinds,
# from parts down to subsections.
_HEADING = re.compile(r'^\$\(\s*\n(#\*#\*|=-=-|-\.-\.|####)[^\n]*\n', re.MULTILINE)
_PROOF = re.compile(r'\$=\s*\(([^)]*)\)[A-Z\s?]*\$\.')
_CREDIT = re.compile(
  r'\s*\((?:Contributed|Revised|Proof\s+shortened|Proof\s+modification|New\s+usage)\s[^()]*\)'
)
_RULE = re.compile(r'^[ \t]*(?:#\*|=-|-\.|##)[#*=.-]{8,}[ \t]*\n', re.MULTILINE)
_BLOCK = re.compile(r'^\{\n(.*?)^\}\n', re.MULTILINE | re.DOTALL)


def read_metamath(raw: bytes) -> Iterator[str]:
  """A database, section by section.

  A compressed proof keeps only the theorems that it uses: its letters are indices into a list,
  which no one reads. Credits, the same few names and dates under each theorem, are left out.
  """
  text = raw.decode()
  starts = [match.start() for match in _HEADING.finditer(text)]
  for begin, end in zip(starts, [*starts[1:], len(text)]):
    section = _PROOF.sub(lambda proof: f'$= ({" ".join(proof[1].split())}) $.', text[begin:end])
    yield _CREDIT.sub('', _RULE.sub('', section))


def read_hol_help(raw: bytes) -> Iterator[str]:
  """An entry of HOL Light's reference manual: its few commands become headings."""
  text = raw.decode().replace('\\ENDDOC', '')
  text = _BLOCK.sub(lambda block: block[1], text)  # before the lines' own braces
  text = re.sub(r'\{([^{}]*)\}', r'\1', text)
  text = re.sub(r'^\\DOC +(.*)', r'\1', text, flags=re.MULTILINE)
  text = re.sub(r'^\\noindent ', '', text, flags=re.MULTILINE)
  # What follows \TYPE stays in its line.
  heading = lambda match: match[1].capitalize() + ('\n' if match[2] else '')
  yield re.sub(r'^\\([A-Z]+)( +)?', heading, text, flags=re.MULTILINE)


def problems(count: int, first: int = 1_000_000) -> Callable[[], Iterator[str]]:
  """Pages of worked arithmetic; `first` keeps clear of those in the built-in corpus."""
  return lambda: (arithmetic.page(number) for number in range(first, first + count))
