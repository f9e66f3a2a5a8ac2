"""What a study's analysis gets, `Results`, and gives, `Analysis`:
a table, comparisons and the panels of a figure.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from experiments.studies.intervals import Comparison, Interval, Role, Values, difference, interval

HELD_OUT_LOSS = 'held-out loss'
NONE = '–'


class Results:
  """The lines of a study's finished runs (experiments/sweeps/line.py),
  any of which may be missing.
  """

  def __init__(self, lines: Sequence[Mapping]):
    self.lines = list(lines)

  def values(self, run: str, measure: Callable[[Mapping], float | None]) -> dict[int, float]:
    """`measure` of every line of a run, by seed; NaN where it is None,
    of a run that has diverged.
    """
    found = {line['seed']: measure(line) for line in self.lines if line['run'] == run}
    return {seed: math.nan if value is None else float(value) for seed, value in found.items()}

  def loss(self, run: str, evaluation: str = '') -> dict[int, float]:
    """On all held-out text, after the last step; of an evaluation of the trained model,
    if one is named.
    """
    return self.score(run, 'loss', evaluation)

  def score(self, run: str, what: str, evaluation: str = '') -> dict[int, float]:
    """As `loss`; `what`: loss or bits_per_byte."""
    return self.values(
      run,
      lambda line: (line['evaluations'][evaluation] if evaluation else line['final'])['total'][
        what
      ],
    )

  def of(self, run: str, key: str) -> object:
    """What is equal for all seeds, such as 'total_params'; None if the run has no line."""
    return next((line[key] for line in self.lines if line['run'] == run), None)


@dataclasses.dataclass(frozen=True)
class Series:
  """Points (x, interval) of one name; an interval is None where there is no value.
  `paper`: drawn apart from ours.
  """

  name: str
  points: tuple[tuple[float, Interval | None], ...]
  paper: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes. Bars if it has `categories`, whose numbers are x then; else lines.
  `level`: a dashed line.
  """

  title: str
  y_axis: str
  series: tuple[Series, ...]
  categories: tuple[str, ...] = ()
  x_axis: str = ''
  log_x: bool = False
  from_zero: bool = False
  digits: int = 3  # of the numbers at bars and level
  level: tuple[str, Interval | None] | None = None


@dataclasses.dataclass(frozen=True)
class Analysis:
  """A study's results. `cannot_show`: what its runs leave open,
  besides what the report says of all studies.
  """

  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  comparisons: tuple[Comparison, ...]
  panels: tuple[Panel, ...]
  cannot_show: str


@dataclasses.dataclass(frozen=True)
class Entry:
  """A row of `losses` and a bar of `bars`. `paper`: its Pile loss, where the paper gives it."""

  label: str
  run: str
  paper: float | None = None
  evaluation: str = ''


LOSS_COLUMNS = (
  'model',
  'parameters',
  'activated',
  'seeds',
  HELD_OUT_LOSS,
  '95% interval',
  'bits/byte',
  'Pile loss of the paper',
)


def losses(results: Results, entries: Sequence[Entry]) -> tuple[tuple[str, ...], ...]:
  """The rows under LOSS_COLUMNS."""
  return tuple(
    (
      entry.label,
      *(sizes(results, entry.run) if not entry.evaluation else ('', '')),
      *shown(results.loss(entry.run, entry.evaluation)),
      shown(results.score(entry.run, 'bits_per_byte', entry.evaluation), 3)[1],
      NONE if entry.paper is None else f'{entry.paper:.3f}',
    )
    for entry in entries
  )


def against(
  results: Results,
  entry: Entry,
  other: Entry,
  above: float = -math.inf,
  below: float = math.inf,
  role: Role = Role.CLAIM,
) -> Comparison:
  """The loss of an entry minus that of another, expected between `above` and `below`."""
  return Comparison(
    f'{entry.label} − {other.label}',
    difference(
      results.loss(entry.run, entry.evaluation), results.loss(other.run, other.evaluation)
    ),
    above=above,
    below=below,
    paper=None if entry.paper is None or other.paper is None else entry.paper - other.paper,
    role=role,
  )


def sizes(results: Results, run: str) -> tuple[str, str]:
  """Total and activated parameters."""
  counts = (results.of(run, 'total_params'), results.of(run, 'active_params'))
  return tuple(NONE if count is None else f'{count / 1e6:.2f}M' for count in counts)


def shown(values: Values, digits: int = 4) -> tuple[str, str, str]:
  """Number of seeds, mean and 95% interval, as text."""
  found = interval(values)
  if found is None:
    return '0', NONE, NONE
  limits = NONE if found.half is None else f'{found.low:.{digits}f} to {found.high:.{digits}f}'
  return str(found.n), f'{found.mean:.{digits}f}', limits


def of_losses(
  results: Results,
  entries: Sequence[Entry],
  comparisons: Sequence[Comparison],
  of_the_paper: str,
  cannot_show: str,
) -> Analysis:
  """An analysis of nothing but held-out losses: a row and a bar an entry,
  beside those `of_the_paper`.
  """
  panels = bars(results, entries, of_the_paper)
  return Analysis(LOSS_COLUMNS, losses(results, entries), tuple(comparisons), panels, cannot_show)


def bars(results: Results, entries: Sequence[Entry], of_the_paper: str) -> tuple[Panel, ...]:
  """Ours and the paper's, side by side: the same bars in the same order, each with its own axis.
  Ours alone where the paper gives none.
  """
  paper = tuple((x, given(entry.paper)) for x, entry in enumerate(entries))
  labels = tuple(entry.label for entry in entries)
  losses_of = {entry.label: results.loss(entry.run, entry.evaluation) for entry in entries}
  panel = bar_panel('This repository', HELD_OUT_LOSS, losses_of)
  if not any(found for _, found in paper):
    return (panel,)
  return (panel, Panel(of_the_paper, 'Pile loss', (Series('', paper, paper=True),), labels))


def bar_panel(title: str, y_axis: str, values: Mapping[str, Values], **options) -> Panel:
  """A bar of each name's values: their mean and interval. options: other fields of `Panel`."""
  bars = tuple((x, interval(each)) for x, each in enumerate(values.values()))
  return Panel(title, y_axis, (Series('', bars),), tuple(values), **options)


def given(value: float | None) -> Interval | None:
  """A value of the paper, which comes without an interval."""
  return None if value is None else Interval(value)
