"""GGUF out: the file holds the weights, and llama.cpp computes, encodes and continues as we do."""

import contextlib
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments.benchmarks import llama_cpp
from experiments.benchmarks.tokenizer import train_like_deepseek
from experiments.notebooks.released import DEEPSEEK, is_dense, tensors, write
from moe.checkpoint import Checkpointer
from moe.convert import outputs
from moe.convert.from_hf import from_hf
from moe.convert.to_gguf import FILE, to_gguf
from moe.data.tokenizers import from_bytes, train_tokenizer
from moe.errors import UserError
from moe.generate import Sampling, generate
from moe.parallel.mesh import make_mesh
from moe.parameters import shardings
from moe.run import load_run
from moe.train import train
from moe.train_step import init_state
from tests import in_process
from tests.moe.convert.hf_checkpoint import CASES, LLAMA
from tests.moe.convert.test_tokenizers import TEXTS
from tests.small import one_device, small_config

pytestmark = pytest.mark.usefixtures('quick_compile')
needs_llama_cpp = pytest.mark.skipif(
  importlib.util.find_spec('xllamacpp') is None, reason='pip install xllamacpp'
)
gguf = pytest.importorskip('gguf', reason="pip install -e '.[convert]'")

ROOT = Path(__file__).parents[3]
_FFN = {'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up', 'down_proj': 'ffn_down'}


def read(folder) -> dict[str, np.ndarray]:
  """Reads every tensor of a file with the `gguf` package; bfloat16 comes as float32."""
  found = {}
  for each in gguf.GGUFReader(folder / FILE).tensors:
    shape = [int(n) for n in each.shape][::-1]
    is_bfloat16 = each.tensor_type == gguf.GGMLQuantizationType.BF16
    data = each.data.view(ml_dtypes.bfloat16).astype(np.float32) if is_bfloat16 else each.data
    found[each.name] = np.array(data).reshape(shape)
  return found


def expected(hf: dict, weights: dict) -> dict[str, np.ndarray]:
  """Returns the tensors that llama.cpp's architectures have for these weights."""
  found = {
    'token_embd.weight': weights['model.embed_tokens.weight'],
    'output_norm.weight': weights['model.norm.weight'],
    'output.weight': weights['lm_head.weight'],
  }

  def neighbours(w, heads):
    """Moves the pairs that RoPE rotates together, (i, i + C/2) of a head, to (2i, 2i + 1)."""
    _, columns = w.shape
    return w.reshape(heads, 2, -1, columns).swapaxes(1, 2).reshape(w.shape)

  for layer in range(hf['num_hidden_layers']):
    there = lambda name, layer=layer: weights[f'model.layers.{layer}.{name}.weight']
    here = {
      'attn_norm': there('input_layernorm'),
      'ffn_norm': there('post_attention_layernorm'),
      'attn_q': neighbours(there('self_attn.q_proj'), hf['num_attention_heads']),
      'attn_k': neighbours(there('self_attn.k_proj'), hf['num_key_value_heads']),
      'attn_v': there('self_attn.v_proj'),
      'attn_output': there('self_attn.o_proj'),
    }
    for name, short in _FFN.items():
      if is_dense(hf, layer):
        here[short] = there(f'mlp.{name}')
        continue
      each = [there(f'mlp.experts.{e}.{name}') for e in range(hf['n_routed_experts'])]
      here[f'{short}_exps'] = np.stack(each)
      here['ffn_gate_inp'] = there('mlp.gate')
      # A model without shared experts gets one of zeros.
      zeros = np.zeros_like(each[0])
      here[f'{short}_shexp'] = (
        there(f'mlp.shared_experts.{name}') if hf['n_shared_experts'] else zeros
      )
    found |= {f'blk.{layer}.{name}.weight': w for name, w in here.items()}
  return found


@pytest.mark.parametrize('name', CASES)
def test_the_file_has_every_tensor(tmp_path, name):
  hf = CASES[name]
  weights = tensors(hf)
  from_hf(write(tmp_path / 'hf', hf, weights), tmp_path / 'run')
  made = to_gguf(tmp_path / 'run', tmp_path / 'out')
  found, truth = read(tmp_path / 'out'), expected(hf, weights)
  assert found.keys() == truth.keys() and made.tensors == len(truth)
  for tensor, array in truth.items():
    np.testing.assert_array_equal(found[tensor], array, tensor)
  assert (tmp_path / 'out' / FILE).stat().st_size == made.bytes
  assert any('zeros' in note for note in made.notes) == (name.endswith('shared experts'))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_matrices_are_of_a_chosen_type_and_the_rest_float32(tmp_path, dtype):
  weights = tensors(DEEPSEEK)
  from_hf(write(tmp_path / 'hf', DEEPSEEK, weights), tmp_path / 'run')
  to_gguf(tmp_path / 'run', tmp_path / 'out', dtype=dtype)
  truth = expected(DEEPSEEK, weights)
  for name, array in read(tmp_path / 'out').items():
    is_exact = array.ndim == 1 or 'gate_inp' in name
    rounded = truth[name] if is_exact else truth[name].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(array.astype(np.float32), rounded, name)


def test_what_a_mesh_wrote_is_the_same_file(tmp_path):
  """The mesh splits weights within heads and within rows."""
  generator = np.random.default_rng(0)
  config = small_config(
    **{'mesh.data': 1, 'mesh.fsdp': 4, 'mesh.expert': 1, 'mesh.tensor': 2, 'data.batch_size': 8},
    **{'model.num_dense_layers': 1, 'model.d_ff': 24},
  )
  mesh = make_mesh(config)
  shapes = jax.eval_shape(lambda: init_state(config))
  values = jax.tree.map(lambda x: generator.integers(0, 9, x.shape).astype(x.dtype), shapes)
  contents = []
  for number, state in enumerate((jax.device_put(values, shardings(config, mesh, shapes)), values)):
    with contextlib.closing(Checkpointer(tmp_path / f'{number}', config, None)) as checkpointer:
      checkpointer.save(3, jax.tree.map(jnp.asarray, state), {}, None)
      checkpointer.wait(3)
    to_gguf(tmp_path / f'{number}', tmp_path / f'out{number}')
    contents.append((tmp_path / f'out{number}' / FILE).read_bytes())
  assert contents[0] == contents[1]


def tokenizer_json(**changes) -> bytes:
  """Returns a tokenizer.json like DeepSeek Coder's, with keys of the model or the file changed."""
  described = json.loads(train_like_deepseek(TEXTS, 400))
  for key, value in changes.items():
    (described['model'] if key in described['model'] else described)[key] = value
  return json.dumps(described).encode()


def like_deepseek_llm() -> bytes:
  """Returns a tokenizer.json with DeepSeek LLM's splits, but only the first of its letters."""
  described = json.loads(tokenizer_json())
  splits = described['pre_tokenizer']['pretokenizers']
  letters, punctuation, han = splits[1:4]
  letters['pattern'] = {'Regex': r'\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓ]+'}
  punctuation['pattern'] = {'Regex': r'\s?[!-/:-~！-／：-～‘-‟　-。]+'}
  splits.insert(3, han | {'pattern': {'Regex': r'\s+$'}})
  return json.dumps(described).encode()


def run_with(tmp_path, content: bytes, config: bytes = b''):
  """Returns a converted run with random weights and this tokenizer. The model has more rows than
  the tokenizer has pieces.
  """
  hf = LLAMA | {'vocab_size': 448}
  source = write(tmp_path / 'hf', hf, tensors(hf))
  (source / from_bytes(content).file_name).write_bytes(content)
  if config:
    (source / 'tokenizer_config.json').write_bytes(config)
  from_hf(source, tmp_path / 'run')
  return tmp_path / 'run'


SAID = [
  *TEXTS,
  'def f(x):\n  return x[1:20]\n\ndef g(y):\n    pass\n\n\n      z = 3.14159\n',
  'Größe, naïveté, øre — “quoted” ‘text’… 12,345 x2\r\n\ttab  two   three',
  '漢字とかな, 한국어, 中文。1 2',
  '🙂 👩‍👩‍👧 \x00\x7f \ufffd',
  ' leading and trailing ',
  '<s> </s> <unk> <｜begin▁of▁sentence｜>'.replace('▁', '_'),
  '',
]
# Text where llama.cpp chooses a different one of our newline pieces.
_OVERLAP = re.compile('(?<!\n)(\n\n)+  ')


@needs_llama_cpp
@pytest.mark.parametrize('kind', ['deepseek-coder', 'deepseek-llm', 'llama'])
def test_llama_cpp_encodes_as_the_run(tmp_path, kind):
  made = {
    'deepseek-coder': tokenizer_json,
    'deepseek-llm': like_deepseek_llm,
    'llama': lambda: train_tokenizer(TEXTS, 400).to_bytes(),
  }[kind]()
  written = to_gguf(run_with(tmp_path, made), tmp_path / 'out')
  tokenizer = from_bytes(made)
  assert any('overlap' in note for note in written.notes) == (kind == 'llama')
  equal = 0
  with llama_cpp.opened(tmp_path / 'out' / FILE) as server:
    for text in SAID:
      ids, there = tokenizer.encode(text), server.encode(text)
      if kind == 'llama' and _OVERLAP.search(text):
        assert server.decode(there) == text
        continue
      assert there == ids, repr(text)
      # Compares with the text, because the library decodes an added token's letter as a byte.
      assert server.decode(ids) == text
      equal += 1
  assert equal > len(SAID) / 2


def test_padded_rows_are_left_out_and_the_template_comes_along(tmp_path):
  config = json.dumps({'chat_template': '{{ messages }}'}).encode()
  to_gguf(run_with(tmp_path, tokenizer_json(), config), tmp_path / 'out')
  tokenizer = from_bytes(tokenizer_json())
  reader = gguf.GGUFReader(tmp_path / 'out' / FILE)
  value = lambda key: reader.fields[key].contents()
  assert len(value('tokenizer.ggml.tokens')) == tokenizer.vocab_size == 403
  assert value('tokenizer.ggml.bos_token_id') == tokenizer.bos_id
  assert value('tokenizer.chat_template') == '{{ messages }}'
  for name in ('token_embd.weight', 'output.weight'):
    assert read(tmp_path / 'out')[name].shape == (403, 32)


REFUSED = {
  'normalizer': ({'normalizer': {'type': 'NFC'}}, 'a normalizer, NFC'),
  'merges': ({'ignore_merges': True}, 'model.ignore_merges=True'),
  'splits': (
    {
      'pre_tokenizer': {
        'type': 'ByteLevel',
        'add_prefix_space': False,
        'trim_offsets': True,
        'use_regex': True,
      }
    },
    'a pre-tokenizer that llama.cpp does not have as',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_tokenizer_that_cannot_be_carried_is_refused(tmp_path, name):
  changes, words = REFUSED[name]
  with pytest.raises(UserError, match=words) as error:
    to_gguf(run_with(tmp_path, tokenizer_json(**changes)), tmp_path / 'out')
  assert '\n' not in str(error.value) and not (tmp_path / 'out').exists()


def test_a_run_without_a_tokenizer_is_told(tmp_path):
  from_hf(write(tmp_path / 'hf', LLAMA, tensors(LLAMA)), tmp_path / 'run')
  told = in_process.check(
    'convert', '--to=gguf', f'--workdir={tmp_path}/run', f'--out={tmp_path}/out'
  )
  assert 'token ids only' in told and '30 tensors of step 0 as llama' in told


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
  weights = tensors(LLAMA)
  weights['lm_head.weight'][3, 4] = 1e6
  from_hf(write(tmp_path / 'hf', LLAMA, weights), tmp_path / 'run')
  flags = f'--workdir={tmp_path}/run', f'--out={tmp_path}/out'
  error_line = lambda *more: in_process.error_line('convert', *flags, *more)
  assert "output.weight has numbers outside float16's" in error_line('--to=gguf', '--dtype=float16')
  assert '--dtype=float16 goes with --to=gguf' in error_line('--to=hf', '--dtype=float16')
  usage = outputs.shutil._ntuple_diskusage(9, 9, 0)
  monkeypatch.setattr(outputs.shutil, 'disk_usage', lambda path: usage)
  assert 'not enough room' in error_line('--to=gguf')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['hf', 'run']


TRAINED = {
  'deepseek': {'model.num_dense_layers': 1, 'model.num_layers': 2, 'model.d_ff': 128},
  'llama': {
    **{'model.num_dense_layers': 2, 'model.num_layers': 2, 'model.d_ff': 160},
    **{'model.num_kv_heads': 1, 'moe.num_experts': 0, 'moe.experts_per_token': 0},
    **{'moe.num_shared_experts': 0, 'moe.d_expert': 0},
  },
}


@needs_llama_cpp
@pytest.mark.parametrize('layout', TRAINED)
def test_llama_cpp_continues_as_the_run(tmp_path, layout):
  """Continues greedily in float32, after enough training that most tokens are far from a tie."""
  tokenizer = {'data.tokenizer': ''}
  if layout == 'llama':
    pages = [page.read_text() for page in sorted(ROOT.glob('docs/*.md'))]
    (tmp_path / 'tokenizer.json').write_bytes(train_like_deepseek(pages, 509))
    tokenizer = {'data.tokenizer': str(tmp_path / 'tokenizer.json')}
  changes = {
    **{'model.vocab_size': 512, 'model.d_model': 64, 'model.num_heads': 2, 'model.head_dim': 32},
    **{'moe.num_experts': 8, 'moe.num_shared_experts': 1, 'moe.d_expert': 32},
    **{'data.sources': f'docs={ROOT}/docs/*.md', 'data.seq_len': 96, 'data.batch_size': 4},
    **{'train.num_steps': 100, 'train.loss_chunk': 384, 'train.writers': ''},
    **{'optimizer.peak_lr': 5e-3, 'optimizer.warmup_steps': 10, 'model.init_std': 0.02},
    **{'evaluation.every_steps': 0, 'checkpoint.keep_best': 0},
  }
  with one_device():
    train(small_config(**(changes | tokenizer | TRAINED[layout])), tmp_path / 'run')
  run = load_run(tmp_path / 'run')
  written = to_gguf(tmp_path / 'run', tmp_path / 'out')
  assert written.layout == layout and written.step == 100
  prompts = ['The checkpoint ', 'python -m launch.', '| expert |', 'Each expert is']
  completions = generate(run, prompts, 60, Sampling())
  with llama_cpp.opened(tmp_path / 'out' / FILE) as server:
    for completion in completions:
      assert completion.stopped_by == 'length'
      ends = run.tokenizer.bos_id, run.tokenizer.eos_id
      assert server.greedy(completion.prompt, 60, *ends) == completion.tokens
