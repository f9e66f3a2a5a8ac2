import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moe.data import corpus, store
from moe.data.prepare import prepare
from moe.data.tokenizers import train_tokenizer
from moe.errors import UserError
from tests.moe.data.helpers import foreign_model, small_config, text, write_corpus


def contents(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def corpus_at(tmp_path):
  write_corpus(tmp_path / 'text', 'a', 30)
  return f'a={tmp_path}/text/*'


def test_documents_come_back(prepared, corpus_spec):
  folder = corpus_spec.split('=')[1].split('/a-*')[0]
  wanted = {path.read_text() for path in Path(folder).glob('a-*')}
  found = []
  for split in ('train', 'held_out'):
    documents = prepared.documents(split, 'a')
    found += [
      prepared.tokenizer.decode(documents.document(i).tolist()) for i in range(len(documents))
    ]
    assert prepared.totals(split, 'a')['documents'] == len(documents)
    assert prepared.totals(split, 'a')['bytes'] == documents.document_bytes.sum()
  assert set(found) == wanted
  assert len(found) == len(wanted)
  assert (prepared.domains, prepared.held_out_domains, prepared.weights) == (
    ('a', 'b'),
    ('a', 'b'),
    (3.0, 1.0),
  )


def test_long_documents_lie_in_several_records(prepared):
  documents = prepared.documents('train', 'b')
  assert max(np.diff(documents.first_record)) > 1
  assert documents.record_tokens.max() <= 4096


def test_same_corpus_same_files_and_no_corpus_needed_after(corpus_at, tmp_path):
  config = small_config(sources=corpus_at)
  first = prepare(config, tmp_path / 'one')
  prepare(config, tmp_path / 'two')
  assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
  for path in (tmp_path / 'text').iterdir():
    path.unlink()
  again = prepare(
    small_config(sources=corpus_at.replace('a=', 'a@5='), seq_len=16), tmp_path / 'one'
  )
  assert again.metadata == first.metadata
  assert again.weights == (5.0,)


@pytest.mark.parametrize(
  'change, key',
  [
    ({'holdout': 0.3}, 'data.holdout: 0.2 there, 0.3 now'),
    ({'model_vocab_size': 500}, 'data.vocab_size: 400 there, 500 now'),
    ({'text_key': 'body'}, 'data.text_key'),
    ({'tokenizer_sample_mb': 2.0}, 'data.tokenizer_sample_mb'),
  ],
)
def test_other_settings_are_refused(prepared, corpus_spec, change, key):
  before = contents(prepared.directory)
  with pytest.raises(
    UserError, match=f'other settings .*{key}.*choose another data.dir or delete it'
  ) as error:
    prepare(small_config(sources=corpus_spec, **change), prepared.directory)
  assert '\n' not in str(error.value)
  assert contents(prepared.directory) == before


def test_other_corpus_is_refused(corpus_at, tmp_path):
  config = small_config(sources=corpus_at)
  prepare(config, tmp_path / 'data')
  (tmp_path / 'text' / 'a-000.txt').write_text('another text')
  with pytest.raises(UserError, match=r'data\.sources\.a\.sha256'):
    prepare(config, tmp_path / 'data')


def test_directory_in_use_is_left_alone(corpus_at, tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('dear')
  with pytest.raises(UserError, match='mine is in use and holds no prepared data'):
    prepare(small_config(sources=corpus_at), tmp_path / 'mine')
  assert contents(tmp_path / 'mine') == {'thesis.txt': b'dear'}


@pytest.mark.parametrize('damage', ['truncate', 'delete', 'flip'])
@pytest.mark.parametrize(
  'name',
  [
    'train-a-00000.array_record',
    'train-a.index.npz',
    'held_out-a.txt',
    'tokenizer.model',
    'metadata.json',
  ],
)
def test_damage_is_found(corpus_at, tmp_path, name, damage):
  config = small_config(sources=corpus_at)
  prepare(config, tmp_path / 'data')
  path = tmp_path / 'data' / name
  raw = path.read_bytes()
  if damage == 'delete':
    path.unlink()
  elif damage == 'truncate':
    path.write_bytes(raw[: len(raw) // 2])
  else:
    middle = len(raw) // 2 if not name.endswith('record') else 65536 // 64
    path.write_bytes(
      raw[:middle] + bytes(255 - byte for byte in raw[middle : middle + 200]) + raw[middle + 200 :]
    )
  wanted = 'damaged: .*' + name.split('-0')[0]
  if (name, damage) == ('metadata.json', 'delete'):
    wanted = 'holds no prepared data'
  with pytest.raises(UserError, match=wanted):
    prepared = prepare(config, tmp_path / 'data')
    documents = prepared.documents('train', 'a')
    for number in range(len(documents)):
      documents.document(number)
    prepared.held_out_text('a')


@pytest.mark.parametrize(
  'change, message',
  [
    (
      {'batch_size': 99, 'seq_len': 999},
      r'data\.batch_size=99 × data\.seq_len=999 is 98901 tokens, .* has \d+',
    ),
    ({'holdout': 0.0}, "'a' has no held-out text: raise data.holdout=0"),
    ({'model_vocab_size': 100_000}, r'model\.vocab_size=100000 is too large .* at most \d+'),
    ({'tokenizer': '/no/such.model'}, r'tokenizer /no/such\.model: No such file'),
  ],
)
def test_what_cannot_be_prepared(corpus_at, tmp_path, change, message):
  with pytest.raises(UserError, match=message) as error:
    prepare(small_config(sources=corpus_at, **change), tmp_path / 'data')
  assert '\n' not in str(error.value)
  assert not (tmp_path / '.data.partial').exists()


def filled(tmp_path, name):
  """Makes the place for prepared data as `name` says: each way it can exist without any data."""
  place = tmp_path / name
  if name == 'link':
    (tmp_path / 'large disk').mkdir()
    place.symlink_to('large disk')
  elif name == 'link to nothing':
    place.symlink_to('far/away')
  elif name == 'mount point':
    (place / 'lost+found').mkdir(parents=True)
  elif name == 'interrupted':
    (place / '.partial').mkdir(parents=True)
    (place / 'train-a-00000.array_record').write_text('half')
  elif name == 'empty':
    place.mkdir()
  return place


@pytest.mark.parametrize(
  'name', ['link', 'link to nothing', 'mount point', 'interrupted', 'empty', 'new']
)
def test_a_place_that_is_there_is_filled(corpus_at, tmp_path, name):
  place = filled(tmp_path, name)
  made = prepare(small_config(sources=corpus_at), place)
  again = prepare(small_config(sources=corpus_at), place)
  assert made.metadata == again.metadata
  assert not (place / '.partial').exists()


def test_a_place_that_cannot_be_written_is_told_before_the_corpus_is_read(
  corpus_at, tmp_path, monkeypatch
):
  (tmp_path / 'file').write_text('no folder')
  monkeypatch.setattr('moe.data.corpus.read_texts', lambda *unused: pytest.fail('it was read'))
  for place in (tmp_path / 'file', tmp_path / 'file/data'):
    with pytest.raises(UserError, match='file'):
      prepare(small_config(sources=corpus_at), place)


def test_home_in_data_dir(corpus_at, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  made = prepare(small_config(sources=corpus_at), '~/data')
  assert made.directory == tmp_path / 'data'
  assert store.open_held_out('~/data', made.tokenizer).held_out_domains == ('a',)


def test_a_moved_corpus_is_known_by_its_text(corpus_at, tmp_path):
  made = prepare(small_config(sources=corpus_at), tmp_path / 'data')
  (tmp_path / 'text').rename(tmp_path / 'moved')
  (tmp_path / 'moved/a-000.txt').rename(tmp_path / 'moved/other.txt')
  moved = prepare(small_config(sources=f'a={tmp_path}/moved'), tmp_path / 'data')
  assert moved.metadata == made.metadata


def test_a_file_corrected_in_place_is_noticed_whatever_its_size_and_time(corpus_at, tmp_path):
  config = small_config(sources=corpus_at)
  prepare(config, tmp_path / 'data')
  path = tmp_path / 'text/a-007.txt'
  times = path.stat()
  path.write_text(path.read_text().replace('page', 'PAGE'))
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  with pytest.raises(UserError, match=r'other settings \(data\.sources\.a\.sha256'):
    prepare(config, tmp_path / 'data')


def test_unread_files_are_not_read_again(corpus_at, tmp_path, monkeypatch):
  config = small_config(sources=corpus_at)
  prepare(config, tmp_path / 'data')
  monkeypatch.setattr('moe.data.corpus.fingerprint', lambda source: pytest.fail('it was read'))
  prepare(config, tmp_path / 'data')


def test_prepared_data_of_format_1_opens(corpus_at, tmp_path):
  config = small_config(sources=corpus_at)
  made = prepare(config, tmp_path / 'data')
  (source,) = corpus.parse_sources(corpus_at)
  metadata = {
    key: value for key, value in made.metadata.items() if key not in ('stamps', 'checksum')
  }
  metadata['format'] = 1
  metadata['settings']['sources'] = {'a': corpus.fingerprint_of_format_1(source)}
  for entries in metadata['splits'].values():
    for entry in entries.values():
      del entry['sha256'], entry['tokens_sha256']
  (tmp_path / 'data/metadata.json').write_text(json.dumps(metadata))
  assert prepare(config, tmp_path / 'data').metadata == metadata
  (tmp_path / 'text/a-000.txt').write_text('longer ' * 999)
  with pytest.raises(UserError, match=r'data\.sources\.a\.blake2b'):
    prepare(config, tmp_path / 'data')


def test_every_flipped_bit_is_found(corpus_at, tmp_path):
  config = small_config(sources=corpus_at)
  prepare(config, tmp_path / 'data')
  for path in sorted((tmp_path / 'data').iterdir()):
    raw = path.read_bytes()
    for place in {0, 1, len(raw) // 3, len(raw) - 2}:
      path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
      with pytest.raises(UserError, match=f'{path.name}|version|other settings'):
        prepare(config, tmp_path / 'data')
    path.write_bytes(raw)
  prepare(config, tmp_path / 'data')


@pytest.mark.parametrize(
  'name', ['../train-a.txt', '/etc/passwd', '', '.', '..', 'train-a.txt/x', 'train-../x.txt', 7]
)
@pytest.mark.parametrize('where', ['files', 'sha256', 'shards', 'domain'])
def test_a_name_in_metadata_leads_nowhere_else(prepared, tmp_path, name, where):
  metadata = json.loads((prepared.directory / 'metadata.json').read_text())
  held_out = metadata['splits']['held_out']
  if where == 'shards':
    held_out['a']['shards'] = [[name, 1]]
  elif where == 'domain':
    held_out[f'../{name}'] = held_out.pop('a')
  else:
    held_out['a'][where] = {str(name): 3}
  (tmp_path / 'data').mkdir()
  store.write_metadata(tmp_path / 'data', metadata)
  with pytest.raises(UserError, match=r'damaged: .*metadata\.json'):
    store.read_metadata(tmp_path / 'data')


def foreign(tmp_path):
  """Returns keys of `data` for a tokenizer that is not ours."""
  (tmp_path / 'mine.model').write_bytes(foreign_model())
  return {'tokenizer': f'{tmp_path}/mine.model', 'vocab_size': 40, 'batch_size': 1, 'seq_len': 8}


def test_what_a_foreign_tokenizer_cannot_say_is_counted_and_told(tmp_path, capfd):
  rows = ['alpha beta gamma', ' \n', 'gate  gate', '中文 alpha', '中']
  (tmp_path / 'held.jsonl').write_text(''.join(json.dumps({'text': row}) + '\n' for row in rows))
  (tmp_path / 'train.txt').write_text('alpha beta gamma delta ' * 20)
  spec = {'sources': f'd={tmp_path}/train.txt', 'validation_sources': f'd={tmp_path}/held.jsonl'}
  made = prepare(small_config(**spec, **foreign(tmp_path)), tmp_path / 'data')
  totals = made.totals('held_out', 'd')
  assert totals['documents'] == 4  # the blank one has no token
  assert totals['lost'] == {'documents': 3, 'bytes': 1 + 6 + 3}
  told = capfd.readouterr().err
  assert 'lossy: it does not give back 3 of 4 held_out documents' in told
  assert '1 documents are left out' in told


def test_text_of_a_tokenizer_of_ours_loses_nothing(prepared):
  for entries in prepared.metadata['splits'].values():
    assert not any('lost' in entry for entry in entries.values())


def test_copies_of_held_out_documents_are_told(tmp_path, capfd):
  write_corpus(tmp_path / 'text', 'a', 30)
  shutil.copy(tmp_path / 'text/a-003.txt', tmp_path / 'held.txt')
  spec = {'sources': f'a={tmp_path}/text', 'validation_sources': f'a={tmp_path}/held.txt'}
  prepare(small_config(**spec), tmp_path / 'data')
  told = capfd.readouterr().err
  assert '1 training documents are copies of held-out ones' in told
  assert "one document alone is held out of domain 'a'" in told


def test_one_text_file_trains(tmp_path, capfd):
  (tmp_path / 'play.txt').write_text('\n'.join(text(i, 90) for i in range(40)))
  made = prepare(small_config(sources=f'play={tmp_path}/play.txt'), tmp_path / 'data')
  size = (tmp_path / 'play.txt').stat().st_size
  assert made.totals('train', 'play')['bytes'] + made.totals('held_out', 'play')['bytes'] == size
  assert 0.15 < made.totals('held_out', 'play')['bytes'] / size < 0.4
  assert 'the end of the longest is held out' in capfd.readouterr().err


@pytest.mark.parametrize('workdir', ['', 'runs/a'])
def test_what_a_run_wrote_is_no_text(tmp_path, workdir, capfd):
  texts = write_corpus(tmp_path, 'a', 40)
  run = tmp_path / workdir
  run.mkdir(parents=True, exist_ok=True)
  config = small_config(sources=f'a={tmp_path}/**/*')
  (run / 'config.json').write_text(json.dumps(config.to_dict()))
  (run / 'metrics.jsonl').write_text('{"step": 1}\n')
  (run / 'tensorboard').mkdir()
  (run / 'tensorboard/events').write_bytes(b'\xff')
  for _ in range(2):
    made = prepare(config, run / 'data')
    totals = [made.totals(split, 'a')['documents'] for split in ('train', 'held_out')]
    assert sum(totals) == len(texts)
  assert 'were written by a run, and are left out' in capfd.readouterr().err


def test_empty_files(tmp_path):
  (tmp_path / 'empty.txt').write_text('')
  with pytest.raises(UserError, match="'a' is empty: its files hold no text"):
    prepare(small_config(sources=f'a={tmp_path}/*.txt'), tmp_path / 'data')


def test_existing_tokenizer(corpus_at, tmp_path, capfd):
  model = tmp_path / 'mine.model'
  model.write_bytes(train_tokenizer([text(i, 300) for i in range(20)], 380).to_bytes())
  for sizes, wanted in (
    ({'model_vocab_size': 379}, r'model\.vocab_size is 379: set --config\.model\.vocab_size=380'),
    ({'vocab_size': 390}, r'data\.vocab_size is 390: set --config\.data\.vocab_size=380'),
    ({'vocab_size': 370}, r'data\.vocab_size is 370: set --config\.data\.vocab_size=380'),
  ):
    with pytest.raises(UserError, match=f'{model} has 380 pieces, {wanted}'):
      prepare(small_config(sources=corpus_at, tokenizer=str(model), **sizes), tmp_path / 'data')
  padded = prepare(small_config(sources=corpus_at, tokenizer=str(model)), tmp_path / 'padded')
  assert padded.tokenizer.vocab_size == 380
  assert 'model.vocab_size=400 is more than the 380 pieces' in capfd.readouterr().err
  config = small_config(sources=corpus_at, tokenizer=str(model), vocab_size=380)
  made = prepare(config, tmp_path / 'data')
  assert made.tokenizer.to_bytes() == model.read_bytes()
  model.write_bytes(train_tokenizer([text(i, 300) for i in range(40)], 380).to_bytes())
  with pytest.raises(UserError, match=r'other settings \(data\.tokenizer: sha256'):
    prepare(config, tmp_path / 'data')


def test_large_vocabularies_take_four_bytes(corpus_at, tmp_path, monkeypatch):
  monkeypatch.setattr(
    'moe.data.tokenizers.sentencepiece.SentencePieceTokenizer.vocab_size', 1 << 17, raising=False
  )
  monkeypatch.setattr(
    'moe.data.tokenizers.sentencepiece.SentencePieceTokenizer.__setattr__', _ignore_vocab_size
  )
  made = prepare(small_config(sources=corpus_at), tmp_path / 'data')
  assert made.documents('train', 'a').document(0).dtype == np.uint32


def _ignore_vocab_size(self, name, value):
  if name != 'vocab_size':
    object.__setattr__(self, name, value)


def test_full_disk(corpus_at, tmp_path):
  """A limit on the size of files stands in for a full disk:
  writing fails with an OSError either way.
  """
  write_corpus(tmp_path / 'text', 'a', 40, seed=1, words=(2000, 3000))
  program = (
    'import sys\nfrom moe.data.prepare import prepare\nfrom moe.errors import UserError\n'
    'from tests.moe.data.helpers import small_config\n'
    f'try: prepare(small_config(sources={corpus_at!r}), {str(tmp_path / "data")!r})\n'
    'except UserError as error: sys.exit(f"one line: {error}")'
  )

  def limit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

  done = subprocess.run(
    [sys.executable, '-c', program], preexec_fn=limit, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert done.stderr.startswith('one line: cannot write ')
  assert 'data' in done.stderr
  assert 'File too large' in done.stderr
  assert done.stderr.count('\n') == 1
  assert not (tmp_path / 'data').exists()
  assert not (tmp_path / '.data.partial').exists()


@pytest.mark.parametrize(
  'stop_at', ['tokenizer.model', 'train-a-00000.array_record', 'metadata.json']
)
def test_killed_at_any_moment_then_run_again(corpus_at, tmp_path, stop_at):
  """kill -9 comes when a file of the unfinished directory appears;
  the next run builds as if nothing had happened.
  """
  program = (
    'import sys, time\nfrom moe.data import prepare as module\n'
    'from tests.moe.data.helpers import small_config\n'
    'module.os.rename = lambda *a: time.sleep(60)\n'  # the last moment lasts
    f'module.prepare(small_config(sources={corpus_at!r}), {str(tmp_path / "data")!r})'
  )
  process = subprocess.Popen([sys.executable, '-c', program])
  deadline = time.monotonic() + 60
  while not (tmp_path / '.data.partial' / stop_at).exists():
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.001)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  assert not (tmp_path / 'data').exists()
  config = small_config(sources=corpus_at)
  prepare(config, tmp_path / 'data')
  prepare(config, tmp_path / 'reference')
  assert contents(tmp_path / 'data') == contents(tmp_path / 'reference')
  assert not (tmp_path / '.data.partial').exists()


def test_two_processes_build_once(corpus_at, tmp_path):
  program = (
    'from moe.data.prepare import prepare\nfrom tests.moe.data.helpers import small_config\n'
    f'print(prepare(small_config(sources={corpus_at!r}), {str(tmp_path / "data")!r}).domains)'
  )
  processes = [
    subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE) for _ in range(2)
  ]
  assert [process.communicate()[0] for process in processes] == [b"('a',)\n"] * 2


def test_program(corpus_at, tmp_path):
  command = [
    sys.executable,
    '-m',
    'launch.prepare_data',
    '--config=experiments/base.py',
    f'--out={tmp_path}/data',
  ]
  command += [
    f'--config.data.sources={corpus_at}',
    '--config.data.holdout=0.2',
    '--config.model.vocab_size=400',
  ]
  too_little = subprocess.run(command, capture_output=True, text=True)
  assert (too_little.returncode, too_little.stderr.count('\n')) == (2, 1)
  assert too_little.stderr.startswith('error: too little text for one batch')
  small = [*command, '--config.data.batch_size=2', '--config.data.seq_len=16']
  done = subprocess.run(small, capture_output=True, text=True, check=True)
  assert 'held_out' in done.stdout
  metadata = json.loads((tmp_path / 'data' / 'metadata.json').read_text())
  assert f'{metadata["splits"]["train"]["a"]["tokens"]:,}' in done.stdout
