"""The content of a report as blocks, and the blocks as Markdown and as HTML."""

import dataclasses
import html
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Heading:
  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph; `strong` comes before the rest, in bold."""

  text: str
  strong: str = ''


@dataclasses.dataclass(frozen=True)
class List:
  items: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Link:
  text: str
  to: str


@dataclasses.dataclass(frozen=True)
class Code:
  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  links: tuple[str, ...] = ()  # one a row, for its first cell


@dataclasses.dataclass(frozen=True)
class Figure:
  """`svg`: the figure itself, inlined in HTML; `file`: the path that Markdown links to."""

  svg: str
  file: str
  description: str


Block = Heading | Text | List | Link | Code | Table | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
  """The blocks as Markdown. `<` is escaped, so that nothing is taken for a tag.
  Other marks of Markdown need no escape: they have no meaning inside a word.
  """
  return '\n\n'.join(map(_markdown, blocks)).replace('<', '&lt;') + '\n'


def to_html(blocks: Sequence[Block]) -> str:
  return '\n'.join(map(_html, blocks))


def _markdown(block: Block) -> str:
  match block:
    case Heading(text, level):
      return f'{"#" * level} {text}'
    case Text(text, strong):
      return f'**{strong}** {text}'.strip() if strong else text
    case List(items):
      return '\n'.join(f'- {item}' for item in items)
    case Link(text, to):
      return f'[{text}]({to})'
    case Code(text):
      return f'```\n{text}\n```'
    case Figure(_, file, description):
      return f'![{description}]({file})'
    case Table(columns, rows, links):
      cells = [list(row) for row in rows]
      for row, link in zip(cells, links):
        row[0] = f'[{row[0]}]({link})'
      rule = '|'.join(
        '---:' if _is_number(column, rows) else '---' for column in range(len(columns))
      )
      line = lambda row: '| ' + ' | '.join(_text(cell).replace('|', '\\|') for cell in row) + ' |'
      return '\n'.join([line(columns), f'|{rule}|', *map(line, cells)])


def _html(block: Block) -> str:
  match block:
    case Heading(text, level):
      return f'<h{level}>{html.escape(text)}</h{level}>'
    case Text(text, strong):
      start = f'<strong>{html.escape(strong)}</strong> ' if strong else ''
      return f'<p>{start}{html.escape(text)}</p>'
    case List(items):
      return '\n'.join(['<ul>', *(f'<li>{html.escape(item)}</li>' for item in items), '</ul>'])
    case Link(text, to):
      return f'<p><a href="{html.escape(to)}">{html.escape(text)}</a></p>'
    case Code(text):
      return f'<pre><code>{html.escape(text)}</code></pre>'
    case Figure(svg, _, _):
      return f'<figure>\n{svg}</figure>'
    case Table(columns, rows, links):
      numbers = [_is_number(column, rows) for column in range(len(columns))]
      cell = lambda tag, text, number: f'<{tag}{" class=number" * number}>{text}</{tag}>'
      row = lambda tag, texts: (
        f'<tr>{"".join(cell(tag, text, number) for text, number in zip(texts, numbers))}</tr>'
      )
      lines = [row('th', map(html.escape, columns))]
      for number, each in enumerate(rows):
        texts = [html.escape(_text(text)) for text in each]
        if links:
          texts[0] = f'<a href="{html.escape(links[number])}">{texts[0]}</a>'
        lines.append(row('td', texts))
      return '\n'.join(['<div class="table"><table>', *lines, '</table></div>'])


def _text(cell: str) -> str:
  """A cell with minus signs in place of the hyphens before its numbers, and none before zero."""
  cell = re.sub(r'(?<![\w.])-(?=0(\.0*)?(?![\d.]))', '', cell)
  return re.sub(r'(?<![\w.])-(?=\d)', '−', cell)


def _is_number(column: int, rows: Sequence[Sequence[str]]) -> bool:
  """Whether a column holds numbers, which are aligned right; the first column never counts."""
  cells = [row[column] for row in rows if row[column] not in ('', '–')]
  return column > 0 and bool(cells) and all(cell.lstrip('−-±')[:1].isdigit() for cell in cells)
