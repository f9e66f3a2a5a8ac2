import json
import struct
import zlib

import pytest

from experiments.corpora.readers import books, html, mathematics, roff, source, wiki

PAGE = r"""'\" t
.\" Copyright someone
.TH OPEN 2 2023-02-05 "Manual"
.SH NAME
open, creat \- open a file
.SH "SEE ALSO"
.nf
.BI "int open(const char *" pathname ", int " flags );
    indented\e0
.fi
.PP
The
.BR open ()
call, \fIsee\fP \(lqbelow\(rq or \*(lqhere\*(rq, na\[:i]ve\(aqs
.\" hidden
.ig
hidden
..
.de XX
hidden
..
.TP
.B \-\-all
Everything \
joined.
.IP \(bu 3
A bullet.
.if t hidden
.ie t \{\
hidden
.\}
.el shown
.UR https://example.org
.UE
.TS
tab(@);
lb l.
a	T{
.B long
cell
T}
_
b	c
.TE
"""
TEXT = """open(2)

NAME

open, creat - open a file

SEE ALSO

int open(const char *pathname, int flags);
    indented\\0

The open() call, see “below” or “here”, naïve's

--all
Everything joined.

• A bullet. shown <https://example.org>

a  long cell
b  c
"""


def test_manual_page():
  assert list(roff.read(PAGE.encode())) == [TEXT]


def test_manual_page_in_chinese_joins_lines_without_space():
  page = '.SH 描述\n列出文件，\n默认 ls\n的目录。\n'
  assert list(roff.read(page.encode())) == ['描述\n\n列出文件，默认 ls 的目录。\n']


@pytest.mark.parametrize(
  'page', [b'.so man2/open.2\n', b'.\\" x\n.so man2/open.2\n', b'.Dd May\n.Dt X 1\n']
)
def test_links_and_mdoc_give_nothing(page):
  assert list(roff.read(page)) == []


def test_manual_page_in_latin_1():
  with pytest.raises(UnicodeDecodeError):
    list(roff.read(b'caf\xe9'))


def test_html():
  page = """<html><head><title>no</title></head><body><div class="nav">no</div><script>no</script>
    <h1>Title</h1><p>One <b>bold</b>
    line<br>two</p><ul><li>a</li><li>b<!-- no --></li></ul>
    <pre>def f():\n\n    return 1</pre>tail
    <table><tr><td>x</td><td>y</td></tr></table><div id=end>中文</div></body></html>"""
  assert list(html.reader(without=['//*[@class="nav"]'])(page.encode())) == [
    'Title\n\nOne bold line\ntwo\n\na\nb\n\ndef f():\n\n    return 1\n\ntail\n\nx y\n\n中文\n'
  ]
  assert list(html.reader('//*[@id="end"]')(page.encode())) == ['中文\n']
  assert list(html.reader('//*[@id="absent"]')(page.encode())) == []


@pytest.mark.parametrize('page, error', [(b'caf\xe9', UnicodeDecodeError), (b'', ValueError)])
def test_no_html(page, error):
  with pytest.raises(error):
    list(html.reader()(page))


def test_wiki():
  source_text = (
    "{{Infobox|x=y}}'''Apollo''' is a [[spaceflight|flight]]<ref>no</ref> "
    'of {{convert|1|m}} note.\n'
    '[[File:x.jpg|thumb|no]]\n* item\n{| class="x"\n| no\n|}\n== Crew ==\nThree.\n'
    '== See also ==\n* no\n[[Category:no]]'
  )
  page = lambda inside: f'<page><title>Apollo</title>{inside}</page>'
  article = f'<ns>0</ns><revision><text>{source_text.replace("<", "&lt;")}</text></revision>'
  pages = (
    page(article) + page('<ns>0</ns><redirect/>' + article) + page(article.replace('0', '1', 1))
  )
  (text,) = wiki.read(f'<mediawiki xmlns="http://x/">{pages}</mediawiki>'.encode())
  assert text.split('\n\n')[0] == 'Apollo'
  assert 'Apollo is a flight of' in text and 'item' in text and 'Three.' in text
  assert 'no' not in text.replace('note', '').split()
  assert not set("{}[]|'<>") & set(text)
  with pytest.raises(ValueError, match='no MediaWiki export'):
    list(wiki.read(b'<mediawiki>'))


def test_fortunes():
  raw = '\x1b[32m《春晓》\x1b[m\n春眠不觉晓\n%\n二 ::\n%\n'
  assert [text.strip() for text in books.read_fortunes(raw.encode())] == [
    '《春晓》\n春眠不觉晓',
    '二',
    '',
  ]


def test_strings():
  assert list(books.read_strings(json.dumps(['第一回\n\n  \n\t话说', 'x']).encode())) == [
    '第一回\n\n话说',
    'x',
  ]
  with pytest.raises(ValueError, match='no JSON list'):
    list(books.read_strings(b'{"a": 1}'))


def test_poems():
  poems = [
    {
      'title': '静夜思',
      'author': '李白',
      'paragraphs': ['床前明月光，', '疑是地上霜。'],
      'id': 'x',
    },
    {'title': '全书', 'content': [{'chapter': '一', 'paragraphs': ['天地玄黄']}]},
    {'name': '李白', 'description': 'no'},
  ]
  wanted = ['静夜思\n李白\n床前明月光，\n疑是地上霜。', '一\n天地玄黄']
  assert list(books.read_poems(json.dumps(poems).encode())) == wanted


def r_block(lines, version=3):
  text = b''.join(struct.pack('>ii', 0x40009, len(line.encode())) + line.encode() for line in lines)
  head = struct.pack('>iii', version, 0, 0) + (struct.pack('>i', 5) + b'UTF-8') * (version == 3)
  raw = b'X\n' + head + struct.pack('>ii', 16, len(lines)) + text
  return struct.pack('>I', len(raw)) + zlib.compress(raw)


@pytest.mark.parametrize('version', [2, 3])
def test_r_novels(version):
  novel = lambda title: [
    title,
    '',
    'by an author',
    'CHAPTER I',
    '',
    'One é.',
    '',
    'Chapter 2',
    'Two.',
    '',
    'THE END',
  ]
  raw = b''.join(
    r_block(lines, version)
    for lines in (novel('EMMA'), novel('NORTHANGER ABBEY'), novel('Persuasion'))
  )
  chapters = list(books.read_r_novels(raw, without='Northanger Abbey'))
  assert chapters[:2] == ['EMMA\n\nCHAPTER I\n\nOne é.\n', 'EMMA\n\nChapter 2\nTwo.\n']
  assert [chapter.split('\n')[0] for chapter in chapters] == ['EMMA'] * 2 + ['Persuasion'] * 2
  with pytest.raises(ValueError, match='no R data'):
    list(books.read_r_novels(b'0000 not zlib'))


@pytest.mark.parametrize(
  'code, wanted',
  [
    ('// Copyright 2009 The Authors.\n// A licence.\n\npackage x\n', 'package x\n'),
    ('# Copyright x\n\nimport y\n\n# Licence of z\n\nz()\n', 'import y\n\n# Licence of z\n\nz()\n'),
    ('(* Title *)\n(* (c) Copyright x *)\n\nlet x = 1;;\n', '(* Title *)\n\nlet x = 1;;\n'),
    ('"""A module."""\n\nlicence = 1\n', '"""A module."""\n\nlicence = 1\n'),
  ],
)
def test_source(code, wanted):
  assert list(source.read(code.encode())) == [wanted]


def test_generated_source_gives_nothing():
  assert list(source.read(b'// Code generated by x. DO NOT EDIT.\n\npackage x\n')) == []


def test_metamath():
  heading = '$(\n' + '#*' * 20 + '\n  Logic\n' + '#*' * 20 + '\n$)\n'
  comment = '  $( A law.  (Contributed by NM,\n     1-Jan-2000.) $)\n'
  theorem = comment + '  id $p |- ( ph -> ph ) $=\n    ( wi ax-1\n    ax-2 ) AAAB\n    CD $.\n'
  wanted = '$(\n  Logic\n$)\n  $( A law. $)\n  id $p |- ( ph -> ph ) $= (wi ax-1 ax-2) $.\n'
  assert (
    list(mathematics.read_metamath((f'$( set.mm $)\n{(heading + theorem) * 2}').encode()))
    == [wanted] * 2
  )


def test_hol_help():
  page = (
    b'\\DOC X\n\n\\SYNOPSIS\nMaps {`t`}.\n\n\\EXAMPLE\n{\n  # f {| x |};;\n}\n'
    b'\\noindent So.\n\n\\ENDDOC\n'
  )
  assert list(mathematics.read_hol_help(page)) == [
    'X\n\nSynopsis\nMaps `t`.\n\nExample\n  # f | x |;;\nSo.\n\n\n'
  ]


def test_problems():
  pages = list(mathematics.problems(3)())
  assert len(set(pages)) == 3 and pages == list(mathematics.problems(3)())
