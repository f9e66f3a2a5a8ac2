import re
import sysconfig
from collections import defaultdict

import pytest

from moe.data import arithmetic, builtin, corpus
from moe.errors import UserError
from tests.moe.data.helpers import small_config

# Matches an equation: a complete sum or product on the left, an integer on the right.
_CLAIM = r'(?<![\w*+/-])(?<![*+/-] )(-?\d+(?: [*+-] -?\d+)+) = (-?\d+)(?!\d| [*+/-])'


@pytest.fixture(scope='module')
def documents():
  return list(builtin.documents())


def test_deterministic(documents):
  assert list(builtin.documents()) == documents


def test_every_domain_has_training_and_held_out_text():
  size = defaultdict(int)
  for document in corpus.documents(small_config(sources='builtin', holdout=0.02).data):
    size[document.domain, document.held_out] += len(document.text)
  assert size['code', False] > 5e6
  assert size['docs', False] > 1e6
  assert 1.5e6 < size['arithmetic', False] < 3e6
  for domain in builtin.WEIGHTS:
    assert 0.005 < size[domain, True] / size[domain, False] < 0.05


def test_docstrings_go_with_their_file(documents):
  side = defaultdict(set)
  for document in documents:
    side[document.origin].add(corpus.chosen(document.origin, 0.02))
  assert all(len(sides) == 1 for sides in side.values())
  pages = [
    document
    for document in documents
    if document.domain == 'docs' and document.text.startswith('Module ')
  ]
  assert {page.origin for page in pages} <= {
    document.origin for document in documents if document.domain == 'code'
  }


def test_no_paragraph_of_topics_twice():
  seen = set()
  for _, text in builtin.topics():
    long = [
      ' '.join(part.split()) for part in text.split('\n\n') if len(' '.join(part.split())) > 40
    ]
    assert not seen & set(long)
    seen |= set(long)


def test_arithmetic_is_right():
  claims = 0
  for number in range(140):
    text = arithmetic.page(number)
    assert text == arithmetic.page(number)
    for left, right in re.findall(_CLAIM, text):
      assert eval(left) == int(right), (left, right, text)
      claims += 1
    for a, sign, b in re.findall(r'^(\d+) ([<>=]) (\d+)$', text, re.MULTILINE):
      assert eval(f'{a} {"==" if sign == "=" else sign} {b}')
    for dividend, divisor, quotient, rest in re.findall(
      r'(\d+) / (\d+) = (\d+)(?: remainder (\d+))?', text
    ):
      assert divmod(int(dividend), int(divisor)) == (int(quotient), int(rest or 0))
  assert claims > 3000


def test_python_without_source(tmp_path, monkeypatch):
  monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))
  with pytest.raises(UserError, match=r'data\.sources=builtin: .* too little'):
    list(builtin.documents())
