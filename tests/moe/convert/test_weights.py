"""Weights in and out: every tensor comes back byte for byte,
and the run computes what the released layout defines.
"""

import contextlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.notebooks import released
from experiments.notebooks.released import DEEPSEEK, tensors, write
from moe.checkpoint import Checkpointer
from moe.convert import table
from moe.convert.from_hf import from_hf
from moe.convert.layouts import LAYOUTS
from moe.convert.to_hf import to_hf
from moe.data.tokenizers.training import train_tokenizer
from moe.errors import UserError
from moe.generate import Sampling, generate
from moe.model import Transformer
from moe.parallel.mesh import make_mesh, use
from moe.parameters import shardings
from moe.run import load_run
from moe.train_step import init_state
from tests.moe.convert.hf_checkpoint import CASES, LLAMA, stacked
from tests.small import small_config

pytestmark = pytest.mark.usefixtures('quick_compile')


def read(folder) -> dict[str, np.ndarray]:
  """Reads every tensor of a folder with the `safetensors` package."""
  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    part = load_file(path)
    assert not found.keys() & part.keys()
    found |= part
  return found


def assert_same_bytes(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
    assert found[name].tobytes() == array.tobytes(), name


def logits(run, tokens_L) -> jax.Array:
  tokens_BL = jnp.asarray(tokens_L)[None]
  positions_BL, segments_BL = jnp.arange(len(tokens_L))[None], jnp.ones_like(tokens_BL)
  hidden_BLD, _, _ = run.model.apply({'params': run.params}, tokens_BL, positions_BL, segments_BL)
  return run.model.apply({'params': run.params}, hidden_BLD, method='logits')[0]


@pytest.fixture(scope='module', params=CASES)
def case(request, tmp_path_factory):
  """(config.json, tensors, folder of the checkpoint, folder of the run made of it)."""
  folder, hf = tmp_path_factory.mktemp('case'), CASES[request.param]
  weights = tensors(hf)
  source = write(folder / 'hf', hf, weights, shards=1 + len(CASES[request.param]) % 3)
  made = from_hf(source, folder / 'run')
  assert made.tensors == len(weights)
  assert made.bytes == sum(w.nbytes for w in weights.values())
  return hf, weights, source, folder / 'run'


def test_a_run_computes_what_the_released_layout_says(case):
  hf, weights, _, workdir = case
  tokens_L = np.random.default_rng(1).integers(0, hf['vocab_size'], 24)
  expected_LV = released.logits(hf, weights, tokens_L)
  np.testing.assert_allclose(logits(load_run(workdir), tokens_L), expected_LV, rtol=0, atol=1e-5)


def test_every_tensor_comes_back_byte_for_byte(case, tmp_path):
  hf, weights, _, workdir = case
  written = to_hf(workdir, tmp_path / 'out')
  assert written.layout == hf['model_type'] and written.tensors == len(weights)
  assert_same_bytes(read(tmp_path / 'out'), weights)
  index = json.loads((tmp_path / 'out/model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == sum(w.nbytes for w in weights.values())
  assert index['weight_map'].keys() == weights.keys()
  config = json.loads((tmp_path / 'out/config.json').read_text())
  # null and 0 shared experts mean the same.
  said = {key: value for key, value in hf.items() if key in config and key != 'n_shared_experts'}
  assert {key: config[key] for key in said} == said
  assert (config.get('n_shared_experts') or 0) == (hf.get('n_shared_experts') or 0)


def test_what_is_written_is_read_again(case, tmp_path):
  *_, workdir = case
  to_hf(workdir, tmp_path / 'out')
  from_hf(tmp_path / 'out', tmp_path / 'again')
  ours, again = load_run(workdir), load_run(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, ours.params, again.params)
  assert ours.config.model == again.config.model and ours.config.moe == again.config.moe


def test_stacked_experts_are_the_same_weights(tmp_path):
  weights = tensors(DEEPSEEK)
  from_hf(write(tmp_path / 'hf', DEEPSEEK, stacked(DEEPSEEK, weights)), tmp_path / 'run')
  to_hf(tmp_path / 'run', tmp_path / 'out')
  assert_same_bytes(read(tmp_path / 'out'), weights)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_other_types_go_in_and_out(tmp_path, dtype):
  """bfloat16 stays as it is. float16, in which nothing here computes, is widened to float32
  exactly.
  """
  hf = DEEPSEEK | {'torch_dtype': np.dtype(dtype).name}
  weights = tensors(hf, dtype=dtype)
  wide = None if dtype == ml_dtypes.bfloat16 else 'float32'
  from_hf(write(tmp_path / 'hf', hf, weights), tmp_path / 'run', wide)
  to_hf(tmp_path / 'run', tmp_path / 'out')
  stored = np.float32 if wide else dtype
  assert_same_bytes(read(tmp_path / 'out'), {k: w.astype(stored) for k, w in weights.items()})


def test_a_run_opens_in_the_type_it_is_stored_in_or_in_another(tmp_path):
  hf = DEEPSEEK | {'torch_dtype': 'bfloat16'}
  weights = tensors(hf, dtype=ml_dtypes.bfloat16)
  from_hf(write(tmp_path / 'hf', hf, weights), tmp_path / 'run')
  stored, wide = load_run(tmp_path / 'run'), load_run(tmp_path / 'run', dtype='float32')
  types = lambda run: {str(x.dtype) for x in jax.tree.leaves(run.params)}
  assert (types(stored), types(wide)) == ({'bfloat16'}, {'float32'})
  assert stored.config.model.dtype == 'bfloat16'
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a.astype(np.float32), b), stored.params, wide.params
  )
  tokens_L = np.arange(20)
  np.testing.assert_array_equal(logits(stored, tokens_L), logits(wide, tokens_L))


def test_a_run_opens_on_a_mesh(tmp_path):
  weights = tensors(DEEPSEEK)
  from_hf(write(tmp_path / 'hf', DEEPSEEK, weights), tmp_path / 'run')
  one, many = load_run(tmp_path / 'run'), load_run(tmp_path / 'run', mesh={'fsdp': 2, 'expert': 4})
  gate = many.params['moe_blocks']['moe']['experts']['gate']
  assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 2, 16, 24)}
  jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
  assert isinstance(many.model, Transformer)


@pytest.mark.parametrize('sizes', [{'fsdp': 4, 'expert': 2}, {'data': 4, 'tensor': 2}])
def test_a_run_trained_on_a_mesh_is_written_out(tmp_path, sizes):
  """Its files hold what each device had: parts of rows and columns, for all layers at once."""
  changes = {f'mesh.{axis}': 1 for axis in ('data', 'fsdp', 'expert')}
  changes |= {f'mesh.{axis}': size for axis, size in sizes.items()}
  changes |= {'model.num_dense_layers': 1, 'model.d_ff': 24, 'data.batch_size': 8}
  config = small_config(**changes)
  mesh = make_mesh(config)
  shapes = jax.eval_shape(lambda: init_state(config))
  with use(mesh, config.mesh.zero):
    make = jax.jit(lambda: init_state(config), out_shardings=shardings(config, mesh, shapes))
    state = make()
    with contextlib.closing(Checkpointer(tmp_path, config, None)) as checkpointer:
      checkpointer.save(3, state, {}, None)
      checkpointer.wait(3)
  assert to_hf(tmp_path, tmp_path / 'out').step == 3
  from_hf(tmp_path / 'out', tmp_path / 'again')
  again = load_run(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, state.params, again.params)


def test_a_parameter_without_a_place_is_refused_by_name(monkeypatch):
  config = small_config()
  entries = LAYOUTS['deepseek'].tables(config)['per expert']
  without = [entry for entry in entries if entry.parameter != 'moe_blocks.attention.query']
  with pytest.raises(UserError, match=r'no place for the parameters moe_blocks\.attention\.query'):
    table.place(without, config, 'deepseek')


def test_frequencies_that_older_files_store_are_left_out_and_told(tmp_path):
  weights = tensors(LLAMA)
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  source = write(tmp_path / 'hf', LLAMA, weights | {name: np.ones(4, np.float32)})
  made = from_hf(source, tmp_path / 'run')
  assert any('inv_freq' in note for note in made.notes)
  to_hf(tmp_path / 'run', tmp_path / 'out')
  assert_same_bytes(read(tmp_path / 'out'), weights)


def test_a_tokenizer_goes_in_and_out(tmp_path):
  texts = ['some words, and some more words'] * 20
  tokenizer = train_tokenizer(texts, 300)
  hf = LLAMA | {'vocab_size': 320}
  source = write(tmp_path / 'hf', hf, tensors(hf))
  (source / 'tokenizer.model').write_bytes(tokenizer.to_bytes())
  from_hf(source, tmp_path / 'run')
  run = load_run(tmp_path / 'run')
  assert run.tokenizer.encode('some words') == tokenizer.encode('some words')
  assert run.config.data.vocab_size == tokenizer.vocab_size
  (completion,) = generate(run, ['some'], 4, Sampling())
  assert all(token < tokenizer.vocab_size for token in completion.tokens)
  to_hf(tmp_path / 'run', tmp_path / 'out')
  assert (tmp_path / 'out/tokenizer.model').read_bytes() == tokenizer.to_bytes()
  assert json.loads((tmp_path / 'out/config.json').read_text())['eos_token_id'] == tokenizer.eos_id
  small = LLAMA | {'vocab_size': 200}
  (write(tmp_path / 'small', small, tensors(small)) / 'tokenizer.model').write_bytes(
    tokenizer.to_bytes()
  )
  with pytest.raises(UserError, match='it belongs to another model'):
    from_hf(tmp_path / 'small', tmp_path / 'other')
