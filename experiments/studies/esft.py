"""Beyond the paper: a new skill learnt by chosen experts, by as many drawn ones, by all parameters.

  python -m launch.sweep --sweep=experiments/studies/esft.py

ESFT (arXiv 2407.01906) trains in each layer the experts that a task's text uses most. It finds them
about as good as all parameters on the task, better at everything else, and better than experts
drawn at random. Here DeepSeekMoE is trained on text (sft.py), tuned for 1600 steps on instructions
of ten skills, and then for 400 on those of one new skill. This last step trains all parameters, the
experts that reach 0.2 of the gates' sum on its text (chosen), or as many at random (drawn). There
are two new skills: translation, which is words by heart, and reversing, a rule.

What has to hold for both skills: the chosen experts forget less of the ten skills than all
parameters do, and have a lower loss on replies to held-out wordings of the new skill than drawn
experts. Beside the claim: the chosen experts' loss and exact replies are better than those of all
parameters, which is more than ESFT says.
"""

from experiments.studies.analysis import NONE, Analysis, Results, dots, shown, sided
from experiments.studies.common import INSTRUCTIONS, LONG, NEW_SKILLS, Run, Scale, Start
from experiments.studies.intervals import difference
from experiments.studies.sft import forgotten, on_text, percent, transferred, tuning
from experiments.studies.verdicts import Comparison, Role

SEEDS = 5
SOURCE = 'ESFT'
CLAIM = (
  'Training the experts that a new skill uses forgets less of the old skills than training all '
  'parameters, and learns more than training as many experts drawn at random.'
)
# What is trained, by `Start.experts`.
_TRAINED = {'': 'all parameters', 'gate': 'chosen experts', 'random': 'drawn experts'}


def sweep(scale: Scale = LONG) -> list[Run]:
  """The runs, of one size whatever the scale."""
  del scale
  text = on_text('deepseek_moe', 'deepseek_moe')

  def run(name, folder, num_steps, start):
    return Run(name, text.config, {**text.overrides, **tuning(folder, num_steps)}, start=start)

  return [
    text,
    run('old_skills', f'{INSTRUCTIONS}_old', 1600, Start('deepseek_moe')),
    *(
      run(_name(skill, by), f'{INSTRUCTIONS}_{skill}', 400, Start('old_skills', experts=by))
      for skill in NEW_SKILLS
      for by in _TRAINED
    ),
  ]


def analyse(results: Results) -> Analysis:
  """What is learnt and what is forgotten."""
  return Analysis(
    (
      *('new skill', 'trained', 'of the parameters', 'seeds', 'loss of replies', 'before'),
      *('exact replies', 'before', 'rise of the old skills’ loss', '95% interval'),
    ),
    tuple(_row(results, skill, by) for skill in NEW_SKILLS for by in _TRAINED),
    tuple(each for skill in NEW_SKILLS for each in _comparisons(results, skill)),
    tuple(
      _panel(results, skill, axis, of)
      for skill in NEW_SKILLS
      for axis, of in (
        ('loss of replies', _learnt),
        ('rise of the old skills’ loss', forgotten),
      )
    ),
    'There are only two skills, from a generator, and a model of a million parameters. All runs '
    'have the same learning rate, which was not searched: with a lower one a model forgets less, '
    'whatever is trained.',
  )


def _row(results, skill, by):
  name = _name(skill, by)
  of = lambda when, what: transferred(results, name, when, what)
  seeds, loss, _ = shown(of('after', 'own'))
  return (
    *(skill, _TRAINED[by], _share(results, name), seeds, loss, shown(of('before', 'own'))[1]),
    *(percent(of('after', 'answers')), percent(of('before', 'answers'))),
    *shown(forgotten(results, name))[1:],
  )


_LOSS_IS = 'the loss of replies is'


def _comparisons(results, skill):
  def compared(what, said, of, ours, other, **expected):
    values = [of(results, _name(skill, by)) for by in (ours, other)]
    title = f'{skill}, {_TRAINED[ours]} − {_TRAINED[other]}: {what}'
    than = f' with {_TRAINED[ours]} than with {_TRAINED[other]}'
    words = sided(f'for {skill} {said}', after=than)
    return Comparison(title, difference(*values), words=words, **expected)

  return [
    compared(
      'rise of the old skills’ loss',
      "the old skills' loss is",
      forgotten,
      'gate',
      '',
      below=0.0,
    ),
    compared('loss of replies', _LOSS_IS, _learnt, 'gate', 'random', below=0.0),
    compared('loss of replies', _LOSS_IS, _learnt, 'gate', '', below=0.0, role=Role.BESIDE),
    compared(
      'exact replies',
      'the share of exact replies is',
      _exact,
      'gate',
      '',
      above=0.0,
      role=Role.BESIDE,
      unit='share',
    ),
  ]


def _learnt(results, name):
  return transferred(results, name, 'after', 'own')


def _exact(results, name):
  return transferred(results, name, 'after', 'answers')


def _share(results, name):
  """The share of the parameters that is trained, as text: the mean over seeds, since each chooses
  its own experts.
  """

  def share(line):
    return line['transfer']['trained_params'] / line['total_params'] if line['transfer'] else None

  shares = results.values(name, share)
  return percent(shares) if shares else NONE


def _panel(results, skill, axis, of):
  values = {label: of(results, _name(skill, by)) for by, label in _TRAINED.items()}
  return dots(skill, axis, values, digits=4, from_zero=True)


def _name(skill, by):
  return f'{skill}, {_TRAINED[by]}'
