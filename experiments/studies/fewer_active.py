"""Figure 5: the loss with fewer routed experts a token than in training.

  python -m launch.sweep --sweep=experiments/studies/fewer_active.py

The trained DeepSeekMoE is evaluated with 3 to 7 routed experts a token; GShard, as it was trained,
is the line to compare with. The paper's numbers (2B, Pile loss, all but the ends read off the
plot):

  routed experts   3       4       5       6       7        GShard
  loss             1.956   1.868   1.831   1.814   1.808    1.867

4 routed and 1 shared expert of a quarter size are 1.25 FFNs a token; GShard's two are 2, 1.6 times
as much. What has to carry over: with 4 the loss is not above GShard's by more than 0.02. Beside the
claim: with 6 it is below GShard's, and it falls with every expert, by less each time.
"""

from collections.abc import Mapping

from experiments.studies.analysis import (
  LOSS_AXIS,
  LOSS_COLUMNS,
  Analysis,
  Entry,
  Panel,
  Results,
  Series,
  beside,
  given,
  losses,
)
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.intervals import Values, difference, interval
from experiments.studies.verdicts import ABOUT, BOUND_MAY_BE_WIDE, Comparison, Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Figure 5'
CLAIM = (
  'With 4 of its 7 routed experts DeepSeekMoE is at least about as good as GShard, on 1.25 '
  'FFNs to its 2.'
)
# 7 needs no evaluation: it is the run's own loss.
_FEWER = {f'{active} routed': {'experts_per_token': active} for active in range(3, 7)}


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run('deepseek_moe', evaluations=_FEWER), scale.run('gshard')]


_PAPER = {3: 1.956, 4: 1.868, 5: 1.831, 6: 1.814, 7: 1.808}
_PAPER_GSHARD = 1.867
_EVALUATION = {active: f'{active} routed' for active in range(3, 7)} | {7: ''}
_ENTRIES = (
  *(
    Entry(f'DeepSeekMoE, {active} routed', 'deepseek_moe', _PAPER[active], _EVALUATION[active])
    for active in _PAPER
  ),
  Entry('GShard', 'gshard', _PAPER_GSHARD),
)


def analyse(results: Results) -> Analysis:
  """The fall from each number of experts to the next, and where it meets GShard."""
  loss = {active: results.loss('deepseek_moe', _EVALUATION[active]) for active in _PAPER}
  gshard = results.loss('gshard')
  series = lambda value, is_paper: (
    Series('DeepSeekMoE', tuple((active, value(active)) for active in _PAPER), is_paper),
  )
  axis = 'activated routed experts'
  return Analysis(
    LOSS_COLUMNS,
    losses(results, _ENTRIES),
    _comparisons(loss, gshard),
    (
      Panel(
        'This repository',
        LOSS_AXIS,
        series(lambda active: interval(loss[active]), False),
        x_axis=axis,
        level=('GShard', interval(gshard)),
      ),
      Panel(
        'The paper, Figure 5 (2B)',
        'Pile loss, nats a token',
        series(lambda active: given(_PAPER[active]), True),
        x_axis=axis,
        level=('GShard', given(_PAPER_GSHARD)),
      ),
    ),
    f'{BOUND_MAY_BE_WIDE} How well a fully trained model does with fewer experts: what the last '
    'ones add may grow with the tokens they have seen.',
  )


def _comparisons(loss: Mapping[int, Values], gshard: Values) -> tuple[Comparison, ...]:
  """The comparisons of `loss`, DeepSeekMoE's by number of routed experts, and GShard's."""
  fall = {active: difference(loss[active], loss[active - 1]) for active in range(4, 8)}
  paper_fall = {active: _PAPER[active] - _PAPER[active - 1] for active in range(4, 8)}
  against_gshard = lambda active, below, role: Comparison(
    f'{active} routed − GShard',
    difference(loss[active], gshard),
    below=below,
    paper=_PAPER[active] - _PAPER_GSHARD,
    role=role,
    words=beside(f'DeepSeekMoE with {active} routed', 'GShard'),
  )
  return (
    against_gshard(4, ABOUT, Role.CLAIM),
    against_gshard(6, 0.0, Role.BESIDE),
    *(
      Comparison(
        f'{active} routed − {active - 1} routed',
        fall[active],
        below=0.0,
        paper=paper_fall[active],
        role=Role.BESIDE,
      )
      for active in range(4, 8)
    ),
    *(
      Comparison(
        f'fall to {active} − fall to {active - 1}',
        difference(fall[active], fall[active - 1]),
        above=0.0,
        paper=paper_fall[active] - paper_fall[active - 1],
        role=Role.BESIDE,
      )
      for active in range(5, 8)
    ),
  )
