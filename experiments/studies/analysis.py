"""What a study's analysis gets, `Results`, and what it gives, `Analysis`:
a table, comparisons and the panels of a figure.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from experiments.studies.intervals import Interval, Values, difference, interval
from experiments.studies.verdicts import LOSS, Comparison, Role

HELD_OUT_LOSS = 'held-out loss'
LOSS_AXIS = 'held-out loss, nats a token'
NONE = '–'


class Results:
  """The lines of a study's finished runs (experiments/sweeps/line.py),
  any of which may be missing.
  """

  def __init__(self, lines: Sequence[Mapping]):
    self.lines = list(lines)

  def values(self, run: str, measure: Callable[[Mapping], float | None]) -> dict[int, float]:
    """`measure` of every line of a run, by seed.
    NaN where it is None, since the run has diverged.
    """
    found = {line['seed']: measure(line) for line in self.lines if line['run'] == run}
    return {seed: math.nan if value is None else float(value) for seed, value in found.items()}

  def loss(self, run: str, evaluation: str = '') -> dict[int, float]:
    """The loss on all held-out text after the last step, by seed; with the name of an
    `evaluation` of the trained model, the loss there.
    """
    return self.score(run, 'loss', evaluation)

  def score(self, run: str, what: str, evaluation: str = '') -> dict[int, float]:
    """As `loss`, for the score `what`: loss or bits_per_byte."""
    return self.values(run, lambda line: _scored(line, evaluation)['total'][what])

  def reading(self, run: str, name: str, domain: str = '') -> dict[int, float]:
    """What layers measured over a domain's held-out text, or over all of it: the mean over layers,
    by seed. Leaves out seeds without this measurement.
    """

    def of_line(line):
      found = (line['readings'] or {}).get(domain) if domain else line['mean_readings']
      return (found or {}).get(name)

    return self._over_layers(run, of_line)

  def measure(self, run: str, measure: str, name: str) -> dict[int, float]:
    """The number `name` of a measure of the trained model, by seed: the mean over layers if it has
    several. Leaves out seeds without this measurement.
    """
    return self._over_layers(
      run, lambda line: ((line['measures'] or {}).get(measure) or {}).get(name)
    )

  def domain_loss(self, run: str, domain: str, evaluation: str = '') -> dict[int, float]:
    """As `loss`, on one domain."""
    return self.values(
      run, lambda line: _scored(line, evaluation)['domains'].get(domain, {}).get('loss')
    )

  def _over_layers(self, run, of_line):
    """The mean of each line's list, by seed. Leaves out lines without one unless they diverged."""
    has = Results([line for line in self.lines if of_line(line) or _has_diverged(line)])
    return has.values(run, lambda line: _mean(of_line(line)))

  def of(self, run: str, key: str) -> object:
    """A field that is equal for all seeds, such as 'total_params'; None if the run has no line."""
    return next((line[key] for line in self.lines if line['run'] == run), None)


def _mean(by_layer):
  """The mean; None without values, and if one was not finite."""
  return None if not by_layer or None in by_layer else mean(by_layer)


def _scored(line, evaluation):
  return line['evaluations'][evaluation] if evaluation else line['final']


def _has_diverged(line):
  return line['final']['total']['loss'] is None


@dataclasses.dataclass(frozen=True)
class Series:
  """Points (x, interval) under one name; an interval is None where there is no value.
  `paper`: these are the paper's values, drawn apart from ours.
  """

  name: str
  points: tuple[tuple[float, Interval | None], ...]
  paper: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes: with `categories` a row for each, numbered by x; without them lines.

  `y_axis`: what the values are. `from_zero`: whether their axis starts at 0.
  For rows: `limits`, beyond which a point is an arrow at the edge; `expected`, the range that is
  claimed for each row, shaded; `intervals`, whether they are written out.
  For lines: `x_axis`, `log_x`, and `level`, a dashed line.
  """

  title: str
  y_axis: str
  series: tuple[Series, ...]
  categories: tuple[str, ...] = ()
  x_axis: str = ''
  log_x: bool = False
  from_zero: bool = False
  limits: tuple[float, float] | None = None
  expected: tuple[tuple[float, float], ...] = ()
  intervals: bool = False
  digits: int = 3  # of the numbers beside dots and level
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
  """A row of `losses` and of the figure. `paper`: its Pile loss, where the paper gives it."""

  label: str
  run: str
  paper: float | None = None
  evaluation: str = ''


LOSS_COLUMNS = (
  'model',
  'parameters',
  'activated',
  'training FLOPs',
  'seeds',
  HELD_OUT_LOSS,
  '95% interval',
  'bits/byte',
  'Pile loss (paper)',
)


def losses(results: Results, entries: Sequence[Entry]) -> tuple[tuple[str, ...], ...]:
  """The rows under LOSS_COLUMNS."""
  return tuple(
    (
      entry.label,
      *(costs(results, entry.run) if not entry.evaluation else ('', '', '')),
      *shown(results.loss(entry.run, entry.evaluation)),
      shown(results.score(entry.run, 'bits_per_byte', entry.evaluation), 3)[1],
      NONE if entry.paper is None else f'{entry.paper:.3f}',
    )
    for entry in entries
  )


def beside_reading(
  results: Results,
  plain: Entry,
  changed: Entry,
  name: str,
  usual: int,
  domains: Sequence[str],
  digits: int,
) -> tuple[tuple[tuple[str, ...], ...], dict[int, float], dict[str, dict[int, float]]]:
  """The rows of two models, and the reading `name` of the second, which is always `usual` in the
  first. A row: label, parameters, seeds, loss with its interval, and the reading over all text and
  over each domain. The reading is returned by seed: over all text, and for each domain.
  """
  of_all = results.reading(changed.run, name)
  by_domain = {domain: results.reading(changed.run, name, domain) for domain in domains}
  found = [shown(values, digits)[1] for values in (of_all, *by_domain.values())]
  numbers = {plain: (str(usual), *('',) * len(domains)), changed: found}
  rows = tuple(
    (entry.label, sizes(results, entry.run)[0], *shown(results.loss(entry.run)), *numbers[entry])
    for entry in (plain, changed)
  )
  return rows, of_all, by_domain


def against(
  results: Results,
  entry: Entry,
  other: Entry,
  above: float = -math.inf,
  below: float = math.inf,
  role: Role = Role.CLAIM,
  words: tuple[str, str] | None = None,
) -> Comparison:
  """The loss of `entry` minus that of `other`, expected between `above` and `below`.
  `words`: as in Comparison; by default the labels say them.
  """
  return Comparison(
    f'{entry.label} − {other.label}',
    difference(
      results.loss(entry.run, entry.evaluation), results.loss(other.run, other.evaluation)
    ),
    above=above,
    below=below,
    paper=None if entry.paper is None or other.paper is None else entry.paper - other.paper,
    role=role,
    words=words or beside(entry.label, other.label),
  )


def beside(label: str, other: str) -> tuple[str, str]:
  """`Comparison.words` for two losses: 'LABEL is {} above OTHER', and the same with 'below'."""
  return sided(f'{label} is', ('above', 'below'), f' {other}')


def sided(
  before: str, sides: tuple[str, str] = ('higher', 'lower'), after: str = ''
) -> tuple[str, str]:
  """`Comparison.words`: the clause for a positive mean, and the one for a negative mean."""
  return tuple(f'{before} {{}} {side}{after}' for side in sides)


def valued(before: str, after: str = '') -> tuple[str, str]:
  """`Comparison.words` for a value that is no difference: a clause with its sign."""
  return f'{before} {{}}{after}', f'{before} −{{}}{after}'


def over_tokens(title: str, axis: str, of: Mapping[str, Mapping[int, Values]]) -> Panel:
  """A curve for each label over how long its runs were: {tokens an activated parameter: values}."""
  series = tuple(
    Series(label, tuple((tokens, interval(values)) for tokens, values in by_tokens.items()))
    for label, by_tokens in of.items()
  )
  return Panel(
    title, axis, series, x_axis='tokens an activated parameter of DeepSeekMoE', log_x=True
  )


def sizes(results: Results, run: str) -> tuple[str, str]:
  """Total and activated parameters, as text."""
  counts = (results.of(run, 'total_params'), results.of(run, 'active_params'))
  return tuple(NONE if count is None else f'{count / 1e6:.2f}M' for count in counts)


def costs(results: Results, run: str) -> tuple[str, str, str]:
  """Total and activated parameters, and training FLOPs, as text."""
  return *sizes(results, run), in_flops(results.of(run, 'train_flops'))


def in_flops(flops: float | None) -> str:
  """FLOPs as a table has them: 2.33e13."""
  return NONE if flops is None else f'{flops:.2e}'.replace('e+', 'e')


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
  cannot_show: str,
) -> Analysis:
  """An analysis of held-out losses alone: one row per entry, and the comparisons."""
  losses_of = {entry.label: results.loss(entry.run, entry.evaluation) for entry in entries}
  panels = (
    dots('Held-out loss', LOSS_AXIS, losses_of),
    differences('Paired differences', comparisons),
  )
  return Analysis(LOSS_COLUMNS, losses(results, entries), tuple(comparisons), panels, cannot_show)


def dots(title: str, y_axis: str, values: Mapping[str, Values], **options) -> Panel:
  """One row per name: the mean and interval of its values. `options`: other fields of `Panel`."""
  found = tuple((x, interval(each)) for x, each in enumerate(values.values()))
  return Panel(title, y_axis, (Series('', found),), tuple(values), **options)


def differences(
  title: str,
  comparisons: Sequence[Comparison],
  unit: str = LOSS,
  axis: str = 'difference of loss, nats a token',
  **options,
) -> Panel:
  """One row per comparison of this unit, with the paper's value beside ours where it gives one.
  `options`: other fields of `Panel`.
  """
  # A comparison that is listed in two roles is drawn once.
  rows = {each.what: each for each in comparisons if each.unit == unit}
  ours = tuple((x, each.interval) for x, each in enumerate(rows.values()))
  paper = tuple((x, given(each.paper)) for x, each in enumerate(rows.values()))
  series = [Series('here', ours)]
  if any(found for _, found in paper):
    series.append(Series('paper', paper, paper=True))
  expected = tuple((each.above, each.below) for each in rows.values())
  return Panel(
    title,
    axis,
    tuple(series),
    tuple(rows),
    expected=expected,
    **options,
  )


def spread(values: Mapping[str, Values]) -> dict[int, float]:
  """The largest value minus the smallest, by seed; NaN where one of them is not finite."""

  def of_seed(seed):
    found = [each[seed] for each in values.values()]
    return max(found) - min(found) if all(map(math.isfinite, found)) else math.nan

  seeds = set.intersection(*(set(each) for each in values.values()))
  return {seed: of_seed(seed) for seed in sorted(seeds)}


def given(value: float | None) -> Interval | None:
  """The paper's value, which comes without an interval; None where it gives none."""
  return None if value is None else Interval(value)
