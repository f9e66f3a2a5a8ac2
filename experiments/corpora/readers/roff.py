"""Manual pages: man(7) source → text.

Only what changes the text is interpreted: headings, paragraphs, tags, fonts, characters, tbl's
rows, `.if`. Layout requests are dropped. It does not run groff, whose output depends on the
machine and is padded and hyphenated for a terminal.
"""

import re
import unicodedata
from collections.abc import Iterator

_NAMED = {
  'aq': "'", 'bu': '•', 'co': '©', 'cq': '’', 'dq': '"', 'em': '—', 'en': '–', 'ha': '^', 'hy': '-',
  'lq': '“', 'rq': '”', 'oq': '‘', 'rs': '\\', 'ti': '~', 'ga': '`', 'la': '⟨', 'ra': '⟩',
  'Fo': '«', 'Fc': '»', 'mu': '×', 'mi': '−', 'pl': '+', '+-': '±', '<=': '≤', '>=': '≥', '!=': '≠',
  '->': '→', '<-': '←', 'rg': '®', 'tm': '™', 'de': '°', 'ss': 'ß', 'or': '|', 'ba': '|', 'bv': '|',
  'br': '|', 'ul': '_', 'sq': '□', 'sl': '/', 'at': '@', 'sh': '#', 'Do': '$', 'lB': '[', 'rB': ']',
  'lC': '{', 'rC': '}', 'if': '∞', 'mc': 'µ', '*m': 'μ', '*p': 'π', 'S1': '¹', 'S2': '²', 'S3': '³',
  '12': '½', '14': '¼', '34': '¾', 'Eu': '€', 'Po': '£', 'sc': '§', 'pc': '·', 'AE': 'Æ', 'ae': 'æ',
  '/L': 'Ł', '/l': 'ł', '/O': 'Ø', '/o': 'ø', 'md': '⋅', 'fm': '′', 'sd': '″', 'nb': '⊄', 'R': '®',
  'Tm': '™', 'lh': '☜', 'rh': '☞', 'f/': '⁄', 'no': '¬', 'ci': '○', 'ct': '¢', 'Ye': '¥', 'ap': '∼',
}  # fmt: skip
_ACCENTS = {
  "'": '\u0301',
  '`': '\u0300',
  '^': '\u0302',
  '~': '\u0303',
  ':': '\u0308',
  ',': '\u0327',
  'o': '\u030a',
}
_NAME = r'(?:\((?P<{0}2>..)|\[(?P<{0}n>[^\]]*)\]|(?P<{0}1>.))'
_ESCAPE = re.compile(
  r'\\(?:(?P<drop>[fFmMnVk](?:\(..|\[[^\]]*\]|.)|s[-+]?(?:\(\d\d|\[[^\]]*\]|[1-3]\d|\d)'
  r'|[whvlLDobXZASN]\'[^\']*\'|[&%/,)^|:c{}!?duprat])|(?P<string>\*'
  + _NAME.format('s')
  + r')|(?P<char>\((?P<c2>..)|\[(?P<cn>[^\]]*)\])'
  r"|C'(?P<quoted>[^']*)'|(?P<one>.))"
)
_ALTERNATING = {'BR', 'BI', 'IR', 'IB', 'RB', 'RI'}
_ONE_FONT = {'B', 'I', 'R', 'SM', 'SB', 'BX'}
_BREAKS = {'PP', 'P', 'LP', 'HP', 'sp', 'RS', 'RE', 'Sp', 'Pp'}
_LINE_BREAKS = {'br', 'TQ', 'ti'}
_VERBATIM, _VERBATIM_END = {'nf', 'EX', 'Vb', 'CS', 'DS'}, {'fi', 'EE', 'Ve', 'CE', 'DE'}
_SKIPPED = {'ig': '..', 'de': '..', 'de1': '..', 'am': '..', 'EQ': '.EN', 'PS': '.PE'}


def read(raw: bytes) -> Iterator[str]:
  """The page; nothing for a link (.so) and for mdoc(7), another macro language.
  UnicodeDecodeError, a ValueError, for Latin-1.
  """
  source = raw.decode()
  if re.search(r'^\.Dd\b', source, re.MULTILINE) or re.match(r'(\s|[.\']\\".*\n)*\.so\s', source):
    return
  yield _Page(source).text()


class _Page:
  """Text under construction; `handle` takes one line of source after another."""

  def __init__(self, source: str):
    self._blocks: list[list[str]] = [[]]  # paragraphs, each a list of lines
    self._verbatim = False
    self._new_line = True  # the next text begins a line
    self._tag = False  # the next line of text is a tag: it stands alone
    self._heading = False
    self._else = False
    source = re.sub(r'\\(?:"|#).*', '', re.sub(r'^[.\']\s*\\".*\n', '', source, flags=re.MULTILINE))
    self._lines = iter(re.sub(r'\\\n', '', source).split('\n'))
    for line in self._lines:
      self.handle(line)

  def text(self) -> str:
    return '\n\n'.join('\n'.join(block) for block in self._blocks if any(block)) + '\n'

  def handle(self, line: str) -> None:
    request = re.match(r"[.']\s*([^\s\\]*)\s*(.*)", line)
    if not line.startswith(('.', "'")) or not request:
      self._add(_characters(line), bare=line)
    elif request[1] in ('if', 'ie', 'el'):
      self._conditional(*request.groups())
    elif request[1] in _SKIPPED:
      self._skip_to(_SKIPPED[request[1]])
    elif request[1] == 'TS':
      self._table()
    else:
      self._request(*request.groups())

  def _request(self, name, rest):
    if name in ('SH', 'SS'):
      self._verbatim = False
      self._break()
      self._heading = not rest
      if rest:
        self._add(' '.join(_arguments(rest)))
        self._break()
    elif name in ('TH', 'IP', 'UR', 'MT'):
      self._titled(name, _arguments(rest))
    elif name in _BREAKS:
      self._break()
    elif name == 'TP':
      self._break()
      self._tag = True
    elif name in _LINE_BREAKS:
      self._new_line, self._tag = True, name == 'TQ'
    elif name in _VERBATIM or name in _VERBATIM_END:
      self._verbatim, self._new_line = name in _VERBATIM, True
    elif name in _ALTERNATING:
      self._add(''.join(_arguments(rest)))
    elif name in _ONE_FONT and rest:
      self._add(' '.join(_arguments(rest)))

  def _titled(self, name, arguments):
    if name == 'TH' and len(arguments) > 1:
      self._add(f'{arguments[0].lower()}({arguments[1]})')
    elif name == 'IP':
      self._break()
      if arguments and arguments[0]:
        self._add(arguments[0])
        self._new_line = len(arguments[0]) > 3  # a bullet or a number stays beside its text
    elif arguments and name in ('UR', 'MT'):
      self._add(f'<{arguments[0]}>')
    if name == 'TH':
      self._break()

  def _add(self, text, bare=''):
    if not text.strip():
      if not bare.strip() and self._blocks[-1] and not bare.startswith('\\'):
        self._break()
      return
    block = self._blocks[-1]
    if self._verbatim or self._new_line or not block:
      block.append(text.rstrip() if self._verbatim else text.strip())
    else:
      block[-1] += ('' if _wide(block[-1][-1:]) and _wide(text.lstrip()[0]) else ' ') + text.strip()
    self._new_line = self._tag
    self._tag = False
    if self._heading:
      self._heading = False
      self._break()

  def _break(self):
    if self._blocks[-1]:
      self._blocks.append([])
    self._new_line, self._tag = True, False

  def _conditional(self, name, rest):
    condition, _, body = rest.partition(' ') if name != 'el' else ('', '', rest)
    # A comparison of strings, which may hold spaces.
    if condition.startswith("'") or condition.startswith('"'):
      condition, body = 't', rest[rest.rfind(condition[0]) + 1 :]
    if '\\{' in condition:
      condition, body = condition.split('\\{', 1)[0], '\\{' + body
    taken = self._else if name == 'el' else condition in ('n', '!t')
    if name == 'ie':
      self._else = not taken
    opens = '\\{' in body
    body = body.replace('\\{', '').strip()
    if taken:
      if body:
        self.handle(body)
    elif opens:
      self._skip_block()

  def _skip_block(self):
    depth = 1
    for line in self._lines:
      depth += line.count('\\{') - line.count('\\}')
      if depth <= 0:
        return

  def _skip_to(self, end):
    for line in self._lines:
      if line.split()[:1] == [end]:
        return

  def _table(self):
    """tbl: options up to `;`, formats up to a full stop, rows with tabs between cells,
    T{ … T} around long ones.
    """
    self._break()
    rows, cell, formats = [], False, True
    for line in self._lines:
      if line.startswith('.TE'):
        break
      if formats:
        formats = not line.rstrip().endswith('.')
      elif line.startswith('.T&'):
        formats = True
      elif cell and not line.startswith('T}'):
        request = re.match(r'\.(\w+)\s+(.*)', line)
        if request and request[1] in _ALTERNATING | _ONE_FONT:
          line = ('' if request[1] in _ALTERNATING else ' ').join(_arguments(request[2]))
        rows[-1] += '' if line.startswith('.') else _characters(line) + ' '
      elif not line.startswith('.') and line.strip() not in ('_', '='):
        text = line.removeprefix('T}').replace('T{', '')
        rows = (
          [*rows[:-1], rows[-1].rstrip() + _characters(text)]
          if cell
          else [*rows, _characters(text)]
        )
        cell = line.endswith('T{')
    rows = ('  '.join(part.strip() for part in row.split('\t')).strip() for row in rows)
    self._blocks.append([row for row in rows if row])
    self._break()


def _arguments(rest):
  """A macro's arguments, quotes removed, escapes resolved."""
  found = re.findall(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+)', rest)
  return [
    _characters(quoted.replace('""', '"') if quoted or not bare else bare) for quoted, bare in found
  ]


def _characters(text):
  return _ESCAPE.sub(_character, text) if '\\' in text else text


def _character(match):
  if match['drop']:
    return ''
  if match['string']:
    return _NAMED.get(match['s2'] or match['sn'] or match['s1'], '')
  if match['char'] or match['quoted']:
    return _named(match['c2'] or match['cn'] or match['quoted'] or '')
  one = match['one']
  return {
    '-': '-',
    ' ': ' ',
    '~': ' ',
    '0': ' ',
    'e': '\\',
    'E': '\\',
    "'": '´',
    '`': '`',
    '\\': '\\',
  }.get(one, one)


def _named(name):
  if code := re.fullmatch(r'u([0-9A-F]{4,6})|char(\d+)', name):
    number = int(code[1], 16) if code[1] else int(code[2])
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else ''
  if len(name) == 2 and name not in _NAMED and name[0] in _ACCENTS:
    return unicodedata.normalize('NFC', name[1] + _ACCENTS[name[0]])
  return _NAMED.get(name, '')


def _wide(character):
  return bool(character) and unicodedata.east_asian_width(character) in 'WF'
