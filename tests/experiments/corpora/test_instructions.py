"""Instructions made from a seed: every answer is right, and no held-out wording is trained on."""

import json
import re
import string

import pytest

from experiments.corpora import instructions, wordings
from experiments.corpora.instructions import LANGUAGES, SKILLS, conversations
from moe.data.chat import conversations as chats
from moe.errors import UserError

DAYS = {day: n for each in wordings.WORDS['days'].values() for n, day in enumerate(each)}
PAIRS = dict(zip(*(wordings.WORDS['things'][each] for each in LANGUAGES), strict=True))


def turns(language, count=1500, **options):
  """Yields (skill, question, answer)."""
  for row in conversations(language, count, seed=3, **options):
    questions, answers = row['messages'][::2], row['messages'][1::2]
    for skill, asked, answered in zip(row['skills'], questions, answers, strict=True):
      yield skill, asked['content'], answered['content']


def numbers(text):
  return list(map(int, re.findall(r'\d+', text)))


def listed(text):
  return re.findall(r'\w+', text)


def is_right(skill, asked, answered):
  """Whether the answer is right, judged by the words of question and answer alone."""
  given, said = numbers(asked), numbers(answered)
  if skill in ('addition', 'subtraction', 'multiplication'):
    a, b, result = said
    done = {'addition': a + b, 'subtraction': a - b, 'multiplication': a * b}[skill]
    return sorted(given) == sorted((a, b)) and result == done
  if skill == 'larger':
    return said == [max(given), min(given)]
  if skill == 'sorting':
    return said == sorted(given)
  if skill == 'reversing':
    words = listed(answered)
    places = [asked.index(word) for word in words]
    return len(words) >= 3 and (len(set(words)) < len(words) or places == sorted(places)[::-1])
  if skill == 'counting':
    separators = asked.count(', ') + asked.count('、')
    return said == [separators + 1]
  if skill == 'place':
    cities = [city for each in wordings.WORDS['cities'].values() for city in each]
    return [city in answered for city in cities] == [city in asked for city in cities]
  if skill == 'record':
    found = json.loads(answered)
    return found['age'] == given[0] and found['name'] in asked and found['city'] in asked
  if skill == 'minutes':
    hours, rest = given
    return said[:3] == [hours, 60, rest] and set(said[3:]) == {hours * 60 + rest}
  if skill == 'weekday':
    (first,), (then,) = (
      [n for day, n in DAYS.items() if day in text] for text in (asked, answered)
    )
    return (first + given[0]) % 7 == then
  (word,) = re.findall('["“](.*?)["”]', asked)
  return PAIRS.get(word) == answered or PAIRS.get(answered) == word


@pytest.mark.parametrize('language', LANGUAGES)
@pytest.mark.parametrize('held_out', [False, True])
def test_every_answer_is_right(language, held_out):
  seen = {skill: 0 for skill in SKILLS}
  for skill, asked, answered in turns(language, held_out=held_out):
    assert is_right(skill, asked, answered), (skill, asked, answered)
    seen[skill] += 1
  assert min(seen.values()) > 100


def test_no_held_out_wording_is_trained_on():
  assert SKILLS.keys() == wordings.WORDINGS.keys()
  words = lambda wording: tuple(text for text, *_ in string.Formatter().parse(wording))
  for by_language in wordings.WORDINGS.values():
    for known in by_language.values():
      assert len(set(map(words, known))) == len(known) == 6
  trained = {asked for language in LANGUAGES for _, asked, _ in turns(language)}
  held_out = {asked for language in LANGUAGES for _, asked, _ in turns(language, held_out=True)}
  assert not trained & held_out


def test_some_skills_alone(tmp_path):
  two = ['place', 'sorting']
  others = [skill for skill in SKILLS if skill not in two]
  for skills in (instructions.chosen(two, []), instructions.chosen([], two)):
    assert skills in (sorted(two, key=list(SKILLS).index), others)
    asked = {skill for skill, *_ in turns('english', 200, skills=skills)}
    assert asked == set(skills)
  instructions.write(tmp_path, 5, 5, seed=0, skills=two)
  rows = [row for path in tmp_path.iterdir() for row in map(json.loads, path.open())]
  assert len(rows) == 20 and {skill for row in rows for skill in row['skills']} == set(two)


@pytest.mark.parametrize(
  ('only', 'without', 'words'),
  [
    (['sort'], [], "--only: there is no skill 'sort': there are addition, "),
    ([], ['sort'], "--without: there is no skill 'sort'"),
    ([], list(SKILLS), '--without leaves no skill'),
    (['place'], ['place'], '--only and --without: give one of them'),
  ],
)
def test_skills_that_cannot_be(only, without, words):
  with pytest.raises(UserError, match=re.escape(words)):
    instructions.chosen(only, without)


def test_the_files_are_conversations_and_the_same_again(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    instructions.write(tmp_path / name, 30, 10, seed=0)
  for path in (tmp_path / 'one').iterdir():
    assert path.read_bytes() == (tmp_path / 'two' / path.name).read_bytes()
    rows = list(map(json.loads, path.read_text().splitlines()))
    assert len(rows) == (10 if 'held_out' in path.name else 30)
    texts = [chats.text_of(row, 'text', f'{path}:1') for row in rows]
    assert len(set(texts)) == len(texts)
    assert 0 < sum(len(row['messages']) == 4 for row in rows) < len(rows)
