"""README, CONTRIBUTING and docs/: links lead somewhere, and every command could be started.

Commands are parsed, not run: the program and the target exist, the program defines each flag, and
configs and keys are real. Words in CAPITALS or under /data stand for something of the reader's;
brackets hold what is optional.
"""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from moe.config import keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
_LINK = re.compile(r'\[[^\]]*\]\(([^)#\s]+)[^)]*\)')
_INLINE = re.compile(r'`((?:pytest|python -m|make|sh) [^`]+)`')
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
_NOT_OURS = ('pip', 'kubectl', 'gcloud', 'sbatch', 'jupyter', '.')


def blocks(page: Path, language: str = '') -> list[str]:
  """The fenced blocks of a page in one language; blocks of '' hold commands."""
  return [
    text for found, text in _FENCE.findall(page.read_text(encoding='utf-8')) if found == language
  ]


def commands(page: Path) -> list[str]:
  """Every command of a page: inline ones, and lines that begin with a program in blocks without
  a language.
  """
  lines = []
  for block in blocks(page):
    lines += block.replace('\\\n', ' ').splitlines()
  starts = ('python', 'make', 'sh ', 'pytest', 'launch/', '.venv', 'WORKDIR=', *_NOT_OURS)
  found = [
    line.partition('     #')[0].partition('  # ')[0].strip()
    for line in lines
    if line.startswith(starts)
  ]
  return found + [
    ' '.join(each.split()) for each in _INLINE.findall(page.read_text(encoding='utf-8'))
  ]


CASES = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in _LINK.findall(page.read_text(encoding='utf-8')):
    assert target.startswith('https://') or (page.parent / target).exists(), (
      f'{page.name}: {target}'
    )


def test_every_page_is_reached_from_the_readme():
  reached = {
    (ROOT / target).resolve()
    for target in _LINK.findall((ROOT / 'README.md').read_text(encoding='utf-8'))
  }
  assert set(PAGES[1:]) <= reached


def test_the_readme_is_a_door():
  assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 120


def test_there_are_commands_to_check():
  assert len(CASES) > 40


@pytest.mark.parametrize('command', sorted({command for _, command in CASES}))
def test_a_command_could_be_started(command):
  words = shlex.split(re.sub(r'\[([^\]]*)\]', r'\1', command).replace('…', ''))
  while '=' in words[0] and not words[0].startswith('-'):  # WORKDIR=DIR program
    words = words[1:]
  check(words)


def check(words: list[str]) -> None:
  program, *rest = words
  if program == 'make':
    done = subprocess.run(['make', '--dry-run', *rest], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  elif program in ('sh', 'sbatch') or program.startswith('launch/'):
    script = next(word for word in words if word.startswith('launch/'))
    assert (ROOT / script).is_file()
    following = rest[rest.index('python') :] if 'python' in rest else []
    check(following) if following else check_flags(
      'launch.train', [w for w in rest if w.startswith('--config')]
    )
  elif program in ('pytest', 'python') and rest[:2] != ['-m', 'pytest'] and program != 'python':
    check_paths(rest)
  elif program.endswith('python'):
    assert rest[0] == '-m'
    if rest[1] == 'pytest':
      check_paths(rest[2:])
    elif not rest[1].rpartition('.')[2].isupper():
      assert (ROOT / (rest[1].replace('.', '/') + '.py')).exists(), rest[1]
      check_flags(rest[1], rest[2:]) if rest[1].startswith('launch.') else None
  else:
    assert program in _NOT_OURS, program


def check_paths(words: list[str]) -> None:
  for word in words:
    assert word.startswith('-') or (ROOT / word.partition('::')[0]).exists(), word


def check_flags(module: str, words: list[str]) -> None:
  """Each flag is defined by the program; configs resolve; --config.KEY is a key."""
  source = (ROOT / (module.replace('.', '/') + '.py')).read_text(encoding='utf-8')
  for word in words:
    if not word.startswith('--'):
      continue
    name, _, value = word[2:].partition('=')
    if name.startswith('config.'):
      assert name.removeprefix('config.') in keys(), word
    elif name == 'config':
      if not re.search(r'\b[A-Z]+\b', value):
        file, _, variant = value.partition(':')
        assert (ROOT / file).is_file(), word
        made = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
        assert made.get_config(variant) if variant else made.get_config()
    else:
      defined = {name, name.removeprefix('no')}
      is_defined = any(f"'{each}'" in source for each in defined) or f'cli.{name}_flag(' in source
      assert is_defined, f'{module} has no {word}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_on_a_page_compiles(page):
  for text in blocks(page, 'python'):
    compile(text, str(page), 'exec')


def test_the_interpreter_is_one_that_the_readme_promises():
  assert (3, 11) <= sys.version_info[:2] <= (3, 13)
