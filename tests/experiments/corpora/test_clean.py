import unicodedata

import pytest

from experiments.corpora import clean

PARAGRAPH = 'The quick brown fox jumps over the lazy dog, number {}, and no one is surprised by it.'


@pytest.mark.parametrize(
  'raw, wanted',
  [
    ('e\u0301\n', 'é\n'),
    ('a\r\nb\rc', 'a\nb\nc\n'),
    ('a  \t\n\n\n\n\nb\u3000\n\n', 'a\n\nb\n'),
    ('\ufeffa\x00b\x1b[31mc\u200bd\u00ad\x85', 'ab[31mcd\n'),
    ('x\ud800y', 'xy\n'),
    ('  indented\n\tcode', '  indented\n\tcode\n'),
    ('中文，「字」', '中文，「字」\n'),
    (' \n \u200b\n', ''),
  ],
)
def test_normalise(raw, wanted):
  assert clean.normalise(raw) == wanted
  assert clean.normalise(wanted) == wanted
  assert unicodedata.is_normalized('NFC', wanted)


def test_boilerplate_is_what_more_than_three_documents_share():
  notice = 'This page is part of release 6.03 of the project; a description of it is elsewhere.'
  texts = [f'Title\n\n{PARAGRAPH.format(i)}\n\n{notice}\n' for i in 'abcd']
  assert clean.without_boilerplate(texts[:3]) == texts[:3]
  assert clean.without_boilerplate(texts) == [f'Title\n\n{PARAGRAPH.format(i)}\n' for i in 'abcd']


def test_duplicates():
  page = '\n\n'.join(PARAGRAPH.format(i) for i in 'abcd')
  near = page.upper().replace(', NUMBER D,', ', NUMBER X,')
  half_new = '\n\n'.join(PARAGRAPH.format(i) for i in 'abcuvwx')
  duplicates = clean.Duplicates()
  assert [duplicates.is_new(text) for text in (page, page, near, half_new)] == [
    True,
    False,
    False,
    True,
  ]
  assert [duplicates.is_new(text) for text in ('short', 'Short!', 'other')] == [True, False, True]


def test_cap_is_whole_texts_in_order_and_does_not_depend_on_it():
  texts = [f'document {i} ' + '字' * (i % 7) for i in range(100)]
  kept = clean.capped(texts, 900)
  assert 700 < sum(len(text.encode()) for text in kept) <= 900
  assert kept == [text for text in texts if text in kept]
  assert set(clean.capped(texts[::-1], 900)) == set(kept)
  assert clean.capped(texts, 10**6) == texts


def test_han_share():
  assert clean.han_share('中文 and') == pytest.approx(2 / 5)
  assert clean.han_share('123') == 0
