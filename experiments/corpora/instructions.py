"""English and Chinese instructions for twelve skills, generated from a seed. Held-out questions
have wordings of their own.

  python -m experiments.corpora.instructions --out=DIR [--count=20000 --seed=0]
    [--only=SKILL,… | --without=SKILL,…]

Writes conversations (docs/chat.md), DIR/LANGUAGE.jsonl to train on and DIR/held_out_LANGUAGE.jsonl,
and prints the flags of launch.train that take them. The last two wordings of each skill in each
language are held out: no training question uses them, whatever its numbers. A quarter of the
conversations go on with a second question. The same seed gives the same bytes everywhere.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.corpora import wordings
from moe import cli
from moe.data.arithmetic import Dice
from moe.errors import UserError
from moe.files import try_folder

LANGUAGES = ('english', 'chinese')
HELD_OUT_WORDINGS = 2  # of each skill and language: the last ones
_OUT = flags.DEFINE_string('out', None, 'Directory to write.')
_COUNT = flags.DEFINE_integer('count', 20_000, 'Training conversations a language.', lower_bound=1)
_HELD_OUT = flags.DEFINE_integer('held_out', 500, 'Held-out ones a language.', lower_bound=1)
_ONLY = flags.DEFINE_list('only', [], 'Skills that questions are of; all without it.')
_WITHOUT = flags.DEFINE_list('without', [], 'Skills that no question is of.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of what is drawn.', lower_bound=0)


class Asked(NamedTuple):
  """What a skill draws: the words that fill a wording's placeholders, and the answer."""

  words: dict[str, object]
  answer: str


def _is(language: str, english: str, chinese: str) -> str:
  return english if language == 'english' else chinese


def addition(dice: Dice, language: str) -> Asked:
  a, b = dice.number(4), dice.number(4)
  return Asked({'a': a, 'b': b}, f'{a} + {b} = {a + b}')


def subtraction(dice: Dice, language: str) -> Asked:
  b, a = sorted((dice.number(4), dice.number(4)))
  return Asked({'a': a, 'b': b}, f'{a} - {b} = {a - b}')


def multiplication(dice: Dice, language: str) -> Asked:
  a, b = dice.between(2, 99), dice.between(2, 9)
  return Asked({'a': a, 'b': b}, f'{a} * {b} = {a * b}')


def larger(dice: Dice, language: str) -> Asked:
  a, b = dice.number(5), dice.number(5)
  b += a == b
  more, less = max(a, b), min(a, b)
  answer = _is(language, f'{more} is larger than {less}.', f'{more}比{less}大。')
  return Asked({'a': a, 'b': b}, answer)


def sorting(dice: Dice, language: str) -> Asked:
  numbers = [dice.between(1, 99) for _ in range(dice.between(3, 6))]
  listed = lambda them: _is(language, ', ', '、').join(map(str, them))
  return Asked({'listed': listed(numbers)}, listed(sorted(numbers)))


def reversing(dice: Dice, language: str) -> Asked:
  words = _things(dice, language, dice.between(3, 5))
  listed = lambda them: _is(language, ', ', '、').join(them)
  return Asked({'listed': listed(words)}, listed(words[::-1]))


def counting(dice: Dice, language: str) -> Asked:
  words = _things(dice, language, dice.between(2, 8))
  answer = _is(language, f'There are {len(words)}.', f'一共有{len(words)}个。')
  return Asked({'listed': _is(language, ', ', '、').join(words)}, answer)


def place(dice: Dice, language: str) -> Asked:
  name, city = (dice.pick(wordings.WORDS[kind][language]) for kind in ('names', 'cities'))
  thing, count = _things(dice, language, 1)[0], dice.between(2, 20)
  answer = _is(language, f'{name} lives in {city}.', f'{name}住在{city}。')
  return Asked({'name': name, 'city': city, 'thing': thing, 'count': count}, answer)


def record(dice: Dice, language: str) -> Asked:
  name, city = (dice.pick(wordings.WORDS[kind][language]) for kind in ('names', 'cities'))
  age = dice.between(8, 90)
  answer = json.dumps({'name': name, 'age': age, 'city': city}, ensure_ascii=False)
  return Asked({'name': name, 'age': age, 'city': city}, answer)


def minutes(dice: Dice, language: str) -> Asked:
  hours, rest = dice.between(1, 12), dice.between(1, 59)
  total = hours * 60 + rest
  answer = _is(
    language,
    f'{hours} * 60 + {rest} = {total}, so it is {total} minutes.',
    f'{hours} * 60 + {rest} = {total}，所以是{total}分钟。',
  )
  return Asked({'hours': hours, 'rest': rest}, answer)


def weekday(dice: Dice, language: str) -> Asked:
  days = wordings.WORDS['days'][language]
  first, later = dice.between(0, 6), dice.between(1, 20)
  then = days[(first + later) % 7]
  answer = _is(language, f'It is {then}.', f'是{then}。')
  return Asked({'day': days[first], 'later': later}, answer)


def translation(dice: Dice, language: str) -> Asked:
  number = dice.between(0, len(wordings.WORDS['things']['english']) - 1)
  english, chinese = (wordings.WORDS['things'][each][number] for each in LANGUAGES)
  return Asked(
    *({'word': english}, chinese) if language == 'english' else ({'word': chinese}, english)
  )


SKILLS: dict[str, Callable[[Dice, str], Asked]] = {
  'addition': addition,
  'subtraction': subtraction,
  'multiplication': multiplication,
  'larger': larger,
  'sorting': sorting,
  'reversing': reversing,
  'counting': counting,
  'place': place,
  'record': record,
  'minutes': minutes,
  'weekday': weekday,
  'translation': translation,
}


def conversations(
  language: str,
  count: int,
  seed: int,
  held_out: bool = False,
  skills: Sequence[str] = tuple(SKILLS),
) -> Iterator[dict]:
  """Rows of `messages` and `skills`, one skill a question; `held_out`: in the held-out wordings."""
  side = 2 * LANGUAGES.index(language) + held_out
  for number in range(count):
    dice = Dice((seed * 4 + side) * 1_000_003 + number)
    turns, asked = [], []
    for _ in range(1 + (dice.between(0, 3) == 0)):
      skill = dice.pick(skills)
      known = wordings.WORDINGS[skill][language]
      chosen = known[-HELD_OUT_WORDINGS:] if held_out else known[:-HELD_OUT_WORDINGS]
      words, answer = SKILLS[skill](dice, language)
      turns.append({'role': 'user', 'content': dice.pick(chosen).format(**words)})
      turns.append({'role': 'assistant', 'content': answer})
      asked.append(skill)
    yield {'messages': turns, 'skills': asked}


def write(
  out: Path, count: int, held_out: int, seed: int, skills: Sequence[str] = tuple(SKILLS)
) -> None:
  """Writes all files. OSError if it cannot."""
  for language in LANGUAGES:
    for name, number, is_held_out in (
      (language, count, False),
      ('held_out_' + language, held_out, True),
    ):
      rows = conversations(language, number, seed, is_held_out, skills)
      lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
      (out / f'{name}.jsonl').write_text(''.join(lines), encoding='utf-8')


def chosen(only: Sequence[str], without: Sequence[str]) -> list[str]:
  """The skills that --only and --without leave, in the order of SKILLS.
  UserError for both flags at once, for an unknown skill, and if no skill is left.
  """
  if only and without:
    raise UserError('--only and --without: give one of them')
  for flag, skills in (('only', only), ('without', without)):
    for skill in skills:
      if skill not in SKILLS:
        raise UserError(f'--{flag}: there is no skill {skill!r}: there are {", ".join(SKILLS)}')
  left = [skill for skill in SKILLS if (skill in only or not only) and skill not in without]
  if not left:
    raise UserError('--without leaves no skill')
  return left


def _things(dice, language, count):
  return [dice.pick(wordings.WORDS['things'][language]) for _ in range(count)]


def main(argv):
  del argv
  if not _OUT.value:
    raise UserError('--out=DIR is required')
  skills = chosen(_ONLY.value, _WITHOUT.value)
  out = Path(_OUT.value).expanduser().absolute()
  try_folder(out, 'the instructions')
  write(out, _COUNT.value, _HELD_OUT.value, _SEED.value, skills)
  of = lambda prefix: ';'.join(f'{each}={out}/{prefix}{each}.jsonl' for each in LANGUAGES)
  print(
    f"--config.data.format=chat --config.data.sources='{of('')}' "
    f"--config.data.validation_sources='{of('held_out_')}'"
  )


if __name__ == '__main__':
  cli.run(main)
