"""Exports a run's checkpoint to a GGUF file, for llama.cpp and programs that build on it.

It knows the architectures `deepseek` and `llama`. The layouts' tables give the tensors' names and
shapes; experts are stacked. The rows of the query and key projections are permuted: the two rows of
a rotary pair are neighbours in GGUF and half a head apart here.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

N layers, E routed experts, D model width, F hidden width, C head width, V vocabulary.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe.config import Config
from moe.convert import checkpoints, gguf_tokenizers, table
from moe.convert.checkpoints import Written
from moe.convert.layouts import LAYOUTS, name_for
from moe.convert.outputs import appearing, new_folder
from moe.convert.planned import Planned, Writer
from moe.convert.table import Entry, Placed
from moe.data.progress import Progress
from moe.errors import UserError

if TYPE_CHECKING:
  import gguf

FILE = 'model.gguf'
_TYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}
_WHOLE = {'F32': 'ALL_F32', 'F16': 'MOSTLY_F16', 'BF16': 'MOSTLY_BF16'}
# GGUF's names of tensors, by the layouts' names.
_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  **{f'self_attn.{x}_proj': f'attn_{x}' for x in 'qkv'},
  'self_attn.o_proj': 'attn_output',
  'mlp.gate': 'ffn_gate_inp',
  **{f'mlp.{x}_proj': f'ffn_{x}' for x in ('gate', 'up', 'down')},
  **{f'mlp.experts.{{expert}}.{x}_proj': f'ffn_{x}_exps' for x in ('gate', 'up', 'down')},
  **{f'mlp.shared_experts.{x}_proj': f'ffn_{x}_shexp' for x in ('gate', 'up', 'down')},
}
_OF_VOCABULARY = ('embedding', 'head')


def to_gguf(
  workdir: str | Path, out: str | Path, step: int | None = None, dtype: str | None = None
) -> Written:
  """Makes the folder `out` with FILE from a run's newest checkpoint, or from that of a given step.

  Args:
    dtype: of the matrices, 'bfloat16', 'float16' or 'float32'; None takes the embedding's type.
      Norms and routers are float32, the only type that llama.cpp has for them.

  Embedding and head have only the tokenizer's rows: padding rows are never sampled. UserError for
  what the architecture cannot express, or a damaged checkpoint; then there is no `out`.
  """
  target = new_folder('out', out)
  library = _library()
  opened = checkpoints.open_checkpoint(workdir, step)
  config = opened.config
  layout = name_for(config)
  # Called only for its errors: an architecture expresses no more than the layout.
  LAYOUTS[layout].to_json(config)
  placed = table.place(_entries(layout, config), config, layout)
  stored = checkpoints.open_arrays(opened, placed)
  dtype = np.dtype(dtype or stored['embedding'].array.dtype.numpy_dtype)
  types = {each.name: np.dtype(np.float32) if _is_float32(each) else dtype for each in placed}
  rows = opened.tokenizer.vocab_size if opened.tokenizer else config.model.vocab_size
  shapes, of_tensors = _tensors(placed, types, rows)
  writer = library.GGUFWriter(None, layout)
  _add_keys(writer, library, config, dtype, rows)
  notes = gguf_tokenizers.add(writer, opened.tokenizer)
  if layout == 'deepseek' and not config.moe.num_shared_experts:
    zeros = _zero_experts(config)
    shapes, of_tensors = shapes | zeros, of_tensors | dict.fromkeys(zeros, dtype)
    notes.append('the architecture requires shared experts: one of zeros is written')
  file = _plan(writer, library, shapes, of_tensors)
  order = _row_order(config)
  with appearing(target, file.size) as beside, Writer(beside, [file]) as output:

    def put(each, piece, block):
      row, column, width = piece.rows.start, piece.columns.start, each.matrix[1]
      if block.dtype == np.float16 and not np.isfinite(block).all():
        raise UserError(
          f"{piece.tensor} has numbers outside float16's range: choose another --dtype"
        )
      if each.name in _OF_VOCABULARY:
        block = block[: max(0, rows - row)]
      if each.name.endswith(('attention.query', 'attention.key')):
        for i, line in enumerate(block):
          output.write(piece.tensor, order[row + i], column, width, line[None])
        return
      output.write(piece.tensor, row, column, width, block)

    with Progress('writing', sum(each.size * types[each.name].itemsize for each in placed)) as bar:
      checkpoints.copy(opened, placed, stored, types, put, bar.add)
  return Written(config, layout, opened.step, len(shapes), file.size, 1, tuple(notes))


def _library():
  try:
    import gguf
  except ImportError as error:
    raise UserError("--to=gguf needs the package gguf: pip install '.[convert]'") from error
  return gguf


def _entries(layout: str, config: Config) -> list[Entry]:
  """The layout's table, with GGUF's names."""
  prefix = 'model.layers.{layer}.'

  def named(entry):
    name = entry.tensor.removesuffix('.weight')
    block = 'blk.{layer}.' if name.startswith(prefix) else ''
    return entry._replace(tensor=f'{block}{_NAMES[name.removeprefix(prefix)]}.weight')

  return [named(entry) for entry in next(iter(LAYOUTS[layout].tables(config).values()))]


def _is_float32(placed: Placed) -> bool:
  return placed.matrix[0] == 1 or placed.name.endswith('router.experts')


def _tensors(placed: Sequence[Placed], types: Mapping, rows: int):
  """({tensor: shape}, {tensor: type}). Embedding and head have `rows` rows."""
  types = {name: types[each.name] for each in placed for name, _ in each.tensors()}
  shapes = table.tensor_shapes(placed)
  for each in placed:
    if each.name in _OF_VOCABULARY:
      shapes[each.entry.tensor] = (rows, each.matrix[1])
  return shapes, types


def _zero_experts(config: Config) -> dict[str, tuple[int, int]]:
  """{tensor: shape} of one shared expert per MoE layer."""
  f, d = config.moe.d_expert, config.model.d_model
  return {
    f'blk.{layer}.ffn_{name}_shexp.weight': (d, f) if name == 'down' else (f, d)
    for layer in range(config.model.num_dense_layers, config.model.num_layers)
    for name in ('gate', 'up', 'down')
  }


def _row_order(config: Config) -> np.ndarray:
  """The row in GGUF of each row of a query or key projection. In a head of C rows, RoPE rotates
  rows i and i + C/2 together here, and rows 2i and 2i + 1 in GGUF.
  """
  c = config.model.head_dim
  rows = np.arange(config.model.num_heads * c)
  half, i = np.divmod(rows % c, c // 2)
  return rows - rows % c + 2 * i + half


def _add_keys(writer: 'gguf.GGUFWriter', library, config: Config, dtype: np.dtype, rows: int):
  """Adds the keys of the architecture."""
  model, moe = config.model, config.moe
  writer.add_name(config.name)
  whole = _WHOLE[_TYPES[dtype.name]]
  writer.add_file_type(library.LlamaFileType[whole])
  writer.add_vocab_size(rows)
  writer.add_context_length(config.data.seq_len)
  writer.add_embedding_length(model.d_model)
  writer.add_block_count(model.num_layers)
  # GGUF requires the key even if the model has no dense layer.
  writer.add_feed_forward_length(model.d_ff or moe.d_expert)
  writer.add_head_count(model.num_heads)
  writer.add_head_count_kv(model.num_kv_heads)
  writer.add_key_length(model.head_dim)
  writer.add_value_length(model.head_dim)
  writer.add_rope_dimension_count(model.head_dim)
  writer.add_rope_freq_base(model.rope_base)
  writer.add_layer_norm_rms_eps(model.norm_eps)
  if model.num_moe_layers:
    writer.add_leading_dense_block_count(model.num_dense_layers)
    writer.add_expert_count(moe.num_experts)
    writer.add_expert_used_count(moe.experts_per_token)
    writer.add_expert_shared_count(moe.num_shared_experts or 1)
    writer.add_expert_feed_forward_length(moe.d_expert)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_weights_norm(False)
    writer.add_expert_gating_func(library.ExpertGatingFuncType.SOFTMAX)


def _plan(
  writer: 'gguf.GGUFWriter', library, shapes: Mapping[str, Sequence[int]], types: Mapping
) -> Planned:
  """The planned file: the header as the library writes it, and the place of every tensor."""
  sizes = {name: math.prod(shape) * types[name].itemsize for name, shape in shapes.items()}
  for name, shape in shapes.items():
    kind = library.GGMLQuantizationType[_TYPES[types[name].name]]
    writer.add_tensor_info(name, shape, types[name], sizes[name], raw_dtype=kind)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / FILE
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = path.read_bytes()
  padded = lambda n: library.GGUFWriter.ggml_pad(n, writer.data_alignment)
  header = header.ljust(padded(len(header)), b'\0')
  spans, end = {}, len(header)
  for name, size in sizes.items():
    spans[name] = end, end + size
    end = padded(end + size)
  return Planned(FILE, header, spans, end)
