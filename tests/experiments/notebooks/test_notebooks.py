"""The notebooks, run from top to bottom: in their own kernels on a trained run,
and in this process on models that lack something.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import ml_dtypes
import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from experiments.notebooks import released
from moe import run as moe_run
from moe.config import from_config_dict, from_stored
from moe.data import store
from moe.data.store import open_held_out
from moe.errors import UserError
from moe.model import Transformer
from moe.run import Run, data_directory, load_run
from moe.storage import provenance
from moe.train import train
from tests.experiments.notebooks import bucket
from tests.launch.runs import config as runs_config
from tests.launch.runs import programs
from tests.moe.convert.hf_checkpoint import LLAMA
from tests.moe.data.helpers import write_corpus
from tests.small import one_device, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / 'experiments' / 'notebooks'
NAMES = ('restore', 'specialization', 'weights')


def tiny_config(**overrides):
  config = runs_config.get_config()
  sizes = {
    'train.num_steps': 4,
    'train.heatmap_every': 0,
    'evaluation.every_steps': 0,
    'checkpoint.keep_best': 0,
  }
  config.update_from_flattened_dict(sizes | {'data.holdout': 0.15} | overrides)
  return from_config_dict(config)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """The workdir of a short run, to be read only; in the bucket it is gs://pod/run."""
  folder = tmp_path_factory.mktemp('bucket')
  sources = tmp_path_factory.mktemp('text')
  for domain in ('prose', 'code'):
    write_corpus(sources, domain, 40, words=(20, 80))
  spec = f'prose={sources}/prose-*.txt;code={sources}/code-*.txt'
  with one_device():
    assert train(tiny_config(**{'data.sources': spec}), folder / 'run').finished
  return folder / 'run'


@pytest.fixture(scope='module')
def in_bucket(workdir):
  """Makes gs://pod the folder above the run, here and in processes started from here."""
  with bucket.serve(workdir.parent) as environment, pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    yield 'gs://pod/run'


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def execute(name, workdir, folder, monkeypatch):
  """Returns the notebook with its outputs, from a fresh kernel of this interpreter that
  starts in the notebooks' folder, as Jupyter's does.
  """
  spec = {
    'argv': [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
    'language': 'python',
  }
  (folder / 'kernels' / 'suite').mkdir(parents=True)
  (folder / 'kernels' / 'suite' / 'kernel.json').write_text(
    json.dumps(spec | {'display_name': 'suite'})
  )
  environment = {
    'WORKDIR': str(workdir),
    'PYTHONPATH': str(ROOT),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'JUPYTER_RUNTIME_DIR': str(folder / 'runtime'),
    'IPYTHONDIR': str(folder / 'ipython'),
  }
  for key, value in environment.items():
    monkeypatch.setenv(key, value)
  specs = KernelSpecManager(kernel_dirs=[str(folder / 'kernels')], ensure_native_kernel=False)
  kernel = AsyncKernelManager(kernel_name='suite', kernel_spec_manager=specs)
  notebook = read(name)
  client = NotebookClient(
    notebook, km=kernel, timeout=300, resources={'metadata': {'path': str(FOLDER)}}
  )
  client.execute()  # raises if a cell does
  return notebook


def printed(notebook, stream='stdout'):
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  return ''.join(output.text for output in outputs if output.get('name') == stream)


def figures(notebook):
  """How many cells show a figure."""
  has_figure = lambda cell: any(
    'image/png' in output.get('data', ()) for output in cell.get('outputs', ())
  )
  return sum(map(has_figure, notebook.cells))


@pytest.mark.parametrize('name', NAMES)
def test_committed_without_outputs(name):
  notebook = read(name)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get('outputs') and cell.get('execution_count') is None and not cell.metadata
  assert set(notebook.metadata) == {'kernelspec', 'language_info'}
  # Not the Python version of whoever saved it last.
  assert notebook.metadata.language_info == {'name': 'python'}


def test_restore_from_a_bucket(in_bucket, tmp_path, monkeypatch):
  notebook = execute('restore', in_bucket, tmp_path, monkeypatch)
  text, warnings = printed(notebook), printed(notebook, 'stderr')
  assert all('GOOGLE_AUTH_TOKEN_FOR_TESTING' in line for line in warnings.splitlines()), warnings
  assert 'tiny, step 4: ' in text and 'experts: 1 shared, 4 routed, 2 of them a token' in text
  assert 'bits/byte' in text and '\nprose' in text and '\ncode' in text
  assert text.count('--- stopped by') == 3 and 'Left out' not in text
  assert figures(notebook) == 2


def test_specialization_from_a_folder(workdir, tmp_path, monkeypatch):
  notebook = execute('specialization', workdir, tmp_path, monkeypatch)
  text = printed(notebook)
  assert not printed(notebook, 'stderr')
  assert 'as trained, 2 routed' in text and 'no shared, 3 routed' in text and 'Left out' not in text
  assert figures(notebook) == 6


def run_cells(name):
  """Runs a notebook's cells in this process: (printed text, number of figures, variables)."""
  plt.switch_backend('agg')
  variables, out = {}, io.StringIO()
  with contextlib.redirect_stdout(out):
    for cell in read(name).cells:
      if cell.cell_type == 'code':
        exec(cell.source, variables)
  shown = len(plt.get_fignums())
  plt.close('all')
  return out.getvalue(), shown, variables


@pytest.fixture
def run_untrained(workdir, monkeypatch):
  """A function that runs a notebook's cells with an untrained model."""
  trained = load_run(workdir)

  def run(name, overrides):
    config = tiny_config(**overrides)
    run = Run(Transformer(config), small_params(config), trained.tokenizer, config, 0)
    monkeypatch.setattr(moe_run, 'load_run', lambda workdir: run)
    monkeypatch.setenv('WORKDIR', str(workdir))
    return run_cells(name)[:2]

  return run


def test_what_a_model_lacks_is_left_out(run_untrained):
  """Top-1 hash routing without shared experts."""
  lacking = {'moe.router': 'hash', 'moe.experts_per_token': 1, 'moe.num_shared_experts': 0}
  text, shown = run_untrained('specialization', lacking)
  left_out = [line for line in text.splitlines() if line.startswith('Left out: ')]
  for line, reason in zip(
    left_out, ("moe.router is 'hash'", 'moe.num_shared_experts is 0', 'single', 'no pairs')
  ):
    assert reason in line and line.endswith('.')
  assert len(left_out) == 4 and shown == 4


def test_too_few_experts_to_mask(run_untrained):
  text, shown = run_untrained('specialization', {'moe.experts_per_token': 4})
  assert (
    text.count('Left out: ') == 2
    and 'leaves 3 to choose from' in text
    and 'experts_per_token=5' in text
  )
  assert shown == 6


def test_a_dense_model_is_restored_without_experts_to_look_at(run_untrained):
  dense = {'moe.num_experts': 0, 'moe.experts_per_token': 0}
  text, shown = run_untrained('restore', dense)
  assert 'bits/byte' in text and 'Left out: tiny has no routed experts' in text and shown == 0


@pytest.fixture(scope='module')
def weights():
  """What run_cells returns for weights.ipynb, on the checkpoint that the notebook makes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('HF_DIR', raising=False)
    text, shown, variables = run_cells('weights')
  with variables['scratch']:
    yield text, shown, variables


def test_weights_that_are_made_there(weights):
  text, shown, _ = weights
  assert '\n80 of 80 tensors came back byte for byte\n' in text and 'Left out' not in text
  assert 0 < float(re.search('largest difference .*, (.*) of the largest', text)[1]) < 1e-5
  assert 'replayed:  True' in text and text.count('--- stopped by') == 2
  assert shown == 4


def test_weights_of_a_folder(tmp_path, monkeypatch):
  """A dense model without a tokenizer, in bfloat16."""
  hf = LLAMA | {'torch_dtype': 'bfloat16'}
  weights = released.tensors(hf, dtype=ml_dtypes.bfloat16)
  monkeypatch.setenv('HF_DIR', str(released.write(tmp_path / 'hf', hf, weights)))
  text, shown, variables = run_cells('weights')
  with variables['scratch']:
    assert not variables['run'].tokenizer
  assert '\n30 of 30 tensors came back byte for byte\n' in text
  assert 1e-4 < float(re.search('largest difference .*, (.*) of the largest', text)[1]) < 0.1
  assert text.count('Left out: ') == 3 and shown == 2


def test_every_line_of_the_page_runs(weights):
  """They run on the run of weights.ipynb, which has compiled most of what they need."""
  page, folder = (ROOT / 'docs/notebooks.md').read_text(encoding='utf-8'), weights[2]['folder']
  lines, variables = '\n'.join(blocks(page)).replace("'DIR'", repr(str(folder / 'run'))), {}
  exec(lines, variables)
  run, texts = variables['run'], variables['texts']
  for replay, logits_LV in zip(variables['same'], run.logits(texts), strict=True):
    np.testing.assert_array_equal(replay.logits_LV, logits_LV)
  assert variables['table'].num_rows == 2 * sum(map(len, run.tokens(texts)))


def blocks(page):
  return re.findall(r'^```python\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)


# Reading from a bucket


def test_parameters_from_a_bucket_are_those_of_the_folder(workdir, in_bucket):
  ours, theirs = load_run(workdir), load_run(in_bucket)
  assert (ours.config, ours.step) == (theirs.config, theirs.step)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  with pytest.raises(
    UserError, match='no checkpoint of step 3 in gs://pod/run/checkpoints; there are 4'
  ):
    load_run(in_bucket, step=3)
  with pytest.raises(UserError, match='no checkpoint in gs://pod/nothing/checkpoints'):
    load_run('gs://pod/nothing')
  with pytest.raises(UserError, match='cannot list gs://other/run/checkpoints'):
    load_run('gs://other/run')


def test_a_run_starts_from_a_bucket(workdir, in_bucket, tmp_path):
  """It takes weights, moments, tokenizer and place in the data, and goes on without `:4`."""
  stored = from_stored(json.loads((workdir / 'config.json').read_text()), 'config.json')
  taken = {'init_optimizer': True, 'init_data': True, 'num_steps': 1}

  def start(spec, folder):
    start = dataclasses.replace(stored.train, init_from=spec, **taken)
    with one_device():
      return train(dataclasses.replace(stored, train=start), folder)

  assert start(f'{in_bucket}:4', tmp_path / 'run').finished
  identity = provenance.source(tmp_path / 'run')
  assert (identity['path'], identity['step']) == (in_bucket, 4)
  assert start(in_bucket, tmp_path / 'run').finished
  ours, theirs = load_run(tmp_path / 'run', 0), load_run(workdir)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  assert ours.tokenizer.to_bytes() == theirs.tokenizer.to_bytes()
  with pytest.raises(UserError, match='there is no checkpoint in gs://pod/nothing/checkpoints'):
    start('gs://pod/nothing', tmp_path / 'other')


def test_programs_read_buckets_too(in_bucket):
  output = programs.check('evaluate', f'--workdir={in_bucket}')
  assert 'tiny, step 4\n' in output and '\nprose' in output


def test_held_out_text_from_a_bucket_is_copied_for_as_long_as_it_is_used(workdir, in_bucket):
  run = load_run(workdir)
  folder = data_directory(run.config, workdir)
  ours, theirs = (
    open_held_out(place, run.tokenizer) for place in (folder, data_directory(run.config, in_bucket))
  )
  assert ours.directory == Path(folder) and theirs.held_out_domains == ours.held_out_domains == (
    'prose',
    'code',
  )
  for domain in ours.held_out_domains:
    assert theirs.held_out_text(domain) == ours.held_out_text(domain)
  copies = theirs.directory
  assert copies.is_dir() and not any('train' in name for name in os.listdir(copies))
  del theirs
  assert not copies.exists()


def test_held_out_text_that_is_not_the_runs(workdir, in_bucket, tmp_path):
  run, folder = load_run(workdir), workdir / 'data'
  with pytest.raises(UserError, match='there is no prepared data in'):
    open_held_out(tmp_path / 'nothing', run.tokenizer)
  with pytest.raises(UserError, match='there is no prepared data in gs://pod/nothing'):
    open_held_out('gs://pod/nothing', run.tokenizer)
  metadata = json.loads((folder / 'metadata.json').read_text())
  for name, tokenizer, message in (
    ('other', {'sha256': '0'}, 'is of another tokenizer'),
    ('half', metadata['tokenizer'], 'gs://pod/half/tokenizer.model is missing'),
  ):
    (workdir.parent / name).mkdir()
    other = metadata | {'tokenizer': tokenizer}
    other |= {'checksum': store.checksum(other)}
    (workdir.parent / name / 'metadata.json').write_text(json.dumps(other))
    with pytest.raises(UserError, match=message):
      open_held_out(f'gs://pod/{name}', run.tokenizer)
