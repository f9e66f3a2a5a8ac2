"""A whole run with data.tokenizer=tokenizer.json: trained, resumed, evaluated and sampled from."""

import json
import math
import shutil

import numpy as np
import pytest

from experiments.benchmarks.tokenizer import BOS, EOS, library_of, train_like_deepseek
from moe.generate import Sampling, generate, generate_tokens
from moe.run import load_run
from tests import in_process
from tests.launch.runs import programs

WORDS = ['the', 'expert', 'router', 'gate', 'of', 'layers', 'return', 'x', '=', '12', '\n']
WORDS += ['中文', '专家', '模型', 'ø', '▁', '😀']


def documents(seed, count):
  dice = np.random.default_rng(seed)
  return [' '.join(dice.choice(WORDS, dice.integers(20, 90))) for _ in range(count)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """{text, flags, run, folder}: a run of 20 steps, with a checkpoint at 10 and one at 20."""
  folder = tmp_path_factory.mktemp('foreign')
  held_out = [*documents(1, 10), f'a text may spell {EOS} and {BOS}']
  for name, texts in (('train', documents(0, 60)), ('held_out', held_out)):
    rows = (json.dumps({'text': text}) + '\n' for text in texts)
    (folder / f'{name}.jsonl').write_text(''.join(rows))
  (folder / 'tokenizer.json').write_bytes(train_like_deepseek(documents(0, 60), 300))
  chat = {'bos_token': BOS, 'eos_token': {'content': EOS}, 'chat_template': '{{ x }}'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(chat))
  flags = (
    f'--config.data.sources=d={folder}/train.jsonl',
    f'--config.data.validation_sources=d={folder}/held_out.jsonl',
    f'--config.data.tokenizer={folder}/tokenizer.json',
    '--config.train.num_steps=20',
    '--config.checkpoint.keep_last=9',
  )
  run = folder / 'run'
  in_process.check('train', programs.CONFIG, *flags, f'--workdir={run}')
  return {'text': held_out, 'flags': flags, 'run': run, 'folder': folder}


@pytest.fixture
def run(made, tmp_path):
  """A copy of the run, to be changed."""
  return shutil.copytree(made['run'], tmp_path / 'run')


def test_the_run_has_the_files_as_they_were(made):
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    content = (made['folder'] / name).read_bytes()
    assert (made['run'] / name).read_bytes() == content
    assert (made['run'] / 'data' / name).read_bytes() == content
    assert load_run(made['run']).tokenizer.files()[name] == content
  assert not (made['run'] / 'tokenizer.model').exists()


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(made, run):
  whole = programs.losses(run)
  shutil.rmtree(run / 'checkpoints/20')
  in_process.check('train', programs.CONFIG, *made['flags'], f'--workdir={run}')
  assert (run / 'checkpoints/20').is_dir()
  assert programs.losses(run)[-1] == whole[-1]


def test_bits_per_byte_are_over_the_bytes_of_the_text(made):
  printed = in_process.check('evaluate', f'--workdir={made["run"]}', '--format=json')
  row = json.loads(printed)['domains']['d']
  library = library_of((made['folder'] / 'tokenizer.json').read_bytes())
  ids = [library.encode(text, add_special_tokens=False).ids for text in made['text']]
  # The end of each document is a token, too.
  assert row['tokens'] == sum(map(len, ids)) + len(ids)
  assert row['bytes'] == sum(len(text.encode()) for text in made['text'])
  # The library's decoder mistakes the added letter ø, but the bytes of every token are known.
  bits = row['loss'] * row['tokens'] / math.log(2) / row['bytes']
  assert row['bits_per_byte'] == pytest.approx(bits, rel=1e-6)


def test_neither_padding_nor_control_pieces_are_ever_sampled(made):
  run = load_run(made['run'])
  assert run.config.model.vocab_size == 320 and run.tokenizer.vocab_size == 303
  prompts = [[run.tokenizer.bos_id]] * 16
  for sampling in (Sampling(1e6), Sampling(1e6, top_k=319, top_p=0.999)):
    drawn = np.concatenate(generate_tokens(run, prompts, 30, sampling, seed=1))
    assert len(drawn) > 200 and drawn.max() < 303
    assert run.tokenizer.bos_id not in drawn
  [completion] = generate(run, [f'the{EOS}'], 3, Sampling())
  assert completion.prompt == f'the{EOS}'


def refusal(*flags):
  """The last line that a refused run prints, after those of preparing the data."""
  done = in_process.run('train', programs.CONFIG, *flags)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  return done.stderr.splitlines()[-1]


def test_another_tokenizer_is_refused_by_name(made, run, tmp_path):
  other = tmp_path / 'other.json'
  other.write_bytes(train_like_deepseek(documents(5, 60), 301))
  flags = [flag for flag in made['flags'] if 'tokenizer' not in flag]
  flags += [f'--config.data.tokenizer={other}', f'--workdir={run}']
  line = in_process.error_line('train', programs.CONFIG, *flags)
  assert 'was prepared with other settings (data.tokenizer: sha256' in line
  assert 'was trained with another tokenizer' in refusal(*flags, f'--config.data.dir={tmp_path}/d')
  # Another end-of-document token makes another tokenizer; another chat template does not.
  for changed, refused in (({'eos_token': 'ø'}, True), ({'chat_template': ''}, False)):
    folder = tmp_path / str(refused)
    shutil.copytree(made['folder'], folder, ignore=shutil.ignore_patterns('run'))
    config = json.loads((folder / 'tokenizer_config.json').read_text()) | changed
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    flags = [flag for flag in made['flags'] if 'tokenizer' not in flag]
    flags += [f'--config.data.tokenizer={folder}/tokenizer.json', f'--workdir={run}']
    flags += [f'--config.data.dir={folder}/data']
    if refused:
      assert 'was trained with another tokenizer' in refusal(*flags)
    else:
      in_process.check('train', programs.CONFIG, *flags)


def test_a_file_of_no_use_is_one_line_and_writes_nothing(made, tmp_path):
  whole = (made['folder'] / 'tokenizer.json').read_bytes()
  flags = [flag for flag in made['flags'] if 'tokenizer' not in flag]
  for content, extra, words in (
    (whole[:-100], (), 'mine.json is damaged: not JSON'),
    (b'', (), 'mine.json is not a SentencePiece model, nor JSON'),
    (whole, ('--config.model.vocab_size=302',), 'has 303 pieces, model.vocab_size is 302'),
  ):
    (tmp_path / 'mine.json').write_bytes(content)
    flag = f'--config.data.tokenizer={tmp_path}/mine.json'
    workdir = f'--workdir={tmp_path / "run"}'
    assert words in in_process.error_line('train', programs.CONFIG, *flags, flag, *extra, workdir)
  assert not (tmp_path / 'run/data').exists()
