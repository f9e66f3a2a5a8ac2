"""Worked arithmetic, step by step, from a seeded generator.
A page is one document of a few problems of one kind.
"""

import random

NUM_PAGES = 1600  # about 2 MB

_PLACES = (
  'ones',
  'tens',
  'hundreds',
  'thousands',
  'ten thousands',
  'hundred thousands',
  'millions',
)
_NAMES = (
  'Ada',
  'Ben',
  'Chen',
  'Dina',
  'Emil',
  'Fatou',
  'Grace',
  'Hugo',
  'Ines',
  'Jonas',
  'Kim',
  'Lena',
  'Mo',
  'Nora',
)
_THINGS = (
  'apples',
  'books',
  'coins',
  'eggs',
  'marbles',
  'nails',
  'pears',
  'pencils',
  'seeds',
  'stamps',
  'tickets',
)


class Dice:
  """Draws from `Random.random()` alone, the one method whose sequence Python
  promises never to change.
  """

  def __init__(self, seed: int):
    self._random = random.Random(seed).random

  def between(self, low: int, high: int) -> int:
    return low + int(self._random() * (high - low + 1))

  def number(self, most_digits: int) -> int:
    """A number whose count of digits is uniform, so that short ones are as common as long ones."""
    digits = self.between(1, most_digits)
    return self.between(10 ** (digits - 1) if digits > 1 else 2, 10**digits - 1)

  def pick(self, items):
    return items[self.between(0, len(items) - 1)]


def page(number: int) -> str:
  """Page `number`, about 1200 characters; the same on every machine."""
  dice = Dice(1_000_003 * number + 17)
  title, problem = _KINDS[number % len(_KINDS)]
  problems = [title]
  while sum(map(len, problems)) < 1100:
    problems.append(problem(dice))
  return '\n\n'.join(problems) + '\n'


def addition(dice) -> str:
  """Column by column, with the carry."""
  a, b = dice.number(6), dice.number(6)
  lines, carry, left, right, place = [f'What is {a} + {b}?'], 0, a, b, 0
  while left or right or carry:
    x, y = left % 10, right % 10
    total = x + y + carry
    sum_of = f'{x} + {y} + {carry}' if carry else f'{x} + {y}'
    end = f'write {total % 10}, carry {total // 10}' if total > 9 else f'write {total}'
    lines.append(f'  {_PLACES[place]}: {sum_of} = {total}, {end}')
    left, right, carry, place = left // 10, right // 10, total // 10, place + 1
  return '\n'.join([*lines, f'{a} + {b} = {a + b}'])


def subtraction(dice) -> str:
  """Column by column, with borrowing, and the check by addition."""
  a, b = sorted((dice.number(6), dice.number(6)), reverse=True)
  lines, borrow, left, right, place = [f'What is {a} - {b}?'], 0, a, b, 0
  while left or right:
    short = left % 10 - borrow < right % 10
    top, y = left % 10 + 10 * short, right % 10
    taken = f'{top} - {borrow} - {y}' if borrow else f'{top} - {y}'
    lines.append(f'  {_PLACES[place]}: {taken} = {top - borrow - y}' + ', borrow 1' * short)
    borrow, left, right, place = int(short), left // 10, right // 10, place + 1
  return '\n'.join([*lines, f'{a} - {b} = {a - b}', f'Check: {b} + {a - b} = {a}'])


def multiplication(dice) -> str:
  """By the parts of the second factor."""
  a, b = dice.number(4), dice.between(11, 999)
  parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != '0']
  lines = [f'What is {a} * {b}?', f'  {b} = ' + ' + '.join(map(str, reversed(parts)))]
  lines += [f'  {a} * {part} = {a * part}' for part in parts]
  total = a * parts[0]
  for part in parts[1:]:
    lines.append(f'  {total} + {a * part} = {total + a * part}')
    total += a * part
  return '\n'.join([*lines, f'{a} * {b} = {a * b}'])


def division(dice) -> str:
  """Long division by one digit or two."""
  divisor, dividend = dice.between(2, 29), dice.between(30, 99999)
  lines, rest = [f'What is {dividend} divided by {divisor}?'], 0
  for digit in str(dividend):
    rest = rest * 10 + int(digit)
    if rest >= divisor:
      times = rest // divisor
      lines.append(
        f'  {rest} holds {divisor} {_times(times)}: {rest} - '
        f'{divisor * times} = {rest - divisor * times}'
      )
    rest %= divisor
  quotient = dividend // divisor
  end = f'{quotient} remainder {rest}' if rest else f'{quotient}'
  back = f'{divisor} * {quotient} + {rest}' if rest else f'{divisor} * {quotient}'
  return '\n'.join([*lines, f'{dividend} / {divisor} = {end}', f'Check: {back} = {dividend}'])


def comparison(dice) -> str:
  """Which of two numbers is larger, and why."""
  a = dice.number(7)
  b = dice.number(7) if dice.between(0, 2) == 0 else max(1, a + dice.between(-500, 500))
  sign = '<' if a < b else '>' if a > b else '='
  if a == b:
    why = 'all digits agree'
  elif len(str(a)) != len(str(b)):
    why = f'{a} has {_digits(a)} and {b} has {_digits(b)}'
  else:
    first = next(i for i, (x, y) in enumerate(zip(str(a), str(b))) if x != y)
    place = _PLACES[len(str(a)) - 1 - first]
    why = f'the {place} differ first, {str(a)[first]} {sign} {str(b)[first]}'
  return f'Compare {a} and {b}.\n  {why}\n{a} {sign} {b}'


def equation(dice) -> str:
  """a·x + b = c, solved for x."""
  a, x, b = dice.between(2, 12), dice.between(-20, 99), dice.between(1, 99)
  name, plus = dice.pick('xyznt'), dice.between(0, 1)
  left = f'{a}{name} + {b}' if plus else f'{a}{name} - {b}'
  right = a * x + b if plus else a * x - b
  step = f'{right} - {b}' if plus else f'{right} + {b}'
  verb = f'Subtract {b} from both sides' if plus else f'Add {b} to both sides'
  check = f'{a} * {x} + {b}' if plus else f'{a} * {x} - {b}'
  return (
    f'Solve {left} = {right}.\n  {verb}: {a}{name} = {step} = {a * x}\n'
    f'  Divide both sides by {a}: {name} = {a * x} / {a} = {x}\nCheck: {check} = {right}'
  )


def story(dice) -> str:
  """A word problem of two steps."""
  who, other, things = dice.pick(_NAMES), dice.pick(_NAMES), dice.pick(_THINGS)
  boxes, each, more = dice.between(2, 19), dice.between(3, 48), dice.between(5, 99)
  total = boxes * each
  opening = f'{who} has {boxes} boxes with {each} {things} in each'
  begin = f'  In the boxes: {boxes} * {each} = {total}'
  if dice.between(0, 1) or more >= total:
    end = f'{total} + {more} = {total + more}'
    question = f'and gets {more} more. How many {things} are there now?'
    return (
      f'{opening} {question}\n{begin}\n  With the others: {end}\n{who} has {total + more} {things}.'
    )
  receiver = other if other != who else 'a friend'
  end = f'{total} - {more} = {total - more}'
  question = f'and gives {more} of them to {receiver}. How many {things} are left?'
  return (
    f'{opening} {question}\n{begin}\n'
    f'  Without those: {end}\n{who} has {total - more} {things} left.'
  )


def _times(count):
  return 'once' if count == 1 else 'twice' if count == 2 else f'{count} times'


def _digits(number):
  count = len(str(number))
  return '1 digit' if count == 1 else f'{count} digits'


_KINDS = (
  ('Addition, column by column.', addition),
  ('Subtraction with borrowing.', subtraction),
  ('Multiplication by parts.', multiplication),
  ('Long division.', division),
  ('Comparing numbers.', comparison),
  ('Equations with one unknown.', equation),
  ('Word problems.', story),
)
