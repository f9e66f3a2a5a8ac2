"""Exports a run's checkpoint to a folder that Hugging Face's tools and servers open."""

from pathlib import Path

import numpy as np

from moe import files
from moe.convert import checkpoints, safetensors, table, tokenizers
from moe.convert.checkpoints import Written
from moe.convert.hf_config import TOKEN_IDS
from moe.convert.layouts import LAYOUTS, name_for
from moe.convert.outputs import appearing, new_folder
from moe.convert.planned import Writer
from moe.data.progress import Progress
from moe.run import folder
from moe.storage import provenance

_SHARD = 5_000_000_000  # bytes
_TYPES = {dtype.name: name for name, dtype in safetensors.DTYPES.items()}


def to_hf(
  workdir: str | Path, out: str | Path, step: int | None = None, dtype: str | None = None
) -> Written:
  """Makes the folder `out` from a run's newest checkpoint, or from that of a given step.

  Args:
    dtype: of the tensors, 'bfloat16' or 'float32'; None keeps the types of the checkpoint.

  UserError for what the layout cannot express, or a damaged checkpoint; then there is no `out`.
  """
  target = new_folder('out', out)
  opened = checkpoints.open_checkpoint(workdir, step)
  config = opened.config
  layout = name_for(config)
  values = LAYOUTS[layout].to_json(config)
  placed = table.place(next(iter(LAYOUTS[layout].tables(config).values())), config, layout)
  stored = checkpoints.open_arrays(opened, placed)
  types = {
    each.name: np.dtype(dtype or stored[each.name].array.dtype.numpy_dtype) for each in placed
  }
  shards = safetensors.plan(
    table.tensor_shapes(placed),
    {name: _TYPES[types[each.name].name] for each in placed for name, _ in each.tensors()},
    _SHARD,
  )
  size = sum(shard.size for shard in shards)
  with appearing(target, size) as beside:
    with Progress('writing', size) as progress, Writer(beside, shards) as writer:

      def put(each, piece, block):
        at = piece.rows.start, piece.columns.start
        writer.write(piece.tensor, *at, each.matrix[1], block)

      checkpoints.copy(opened, placed, stored, types, put, progress.add)
    files.replace(
      beside / safetensors.INDEX, files.to_json(safetensors.index(shards), indent=2) + '\n'
    )
    ids = _token_ids(folder(workdir)) | tokenizers.write(opened.tokenizer, beside)
    values |= ids | {'torch_dtype': types['embedding'].name}
    files.replace(beside / 'config.json', files.to_json(values, indent=2) + '\n')
  tensors = sum(len(shard.spans) for shard in shards)
  return Written(config, layout, opened.step, tensors, size, len(shards))


def _token_ids(workdir):
  """The token ids in the config.json that a run was converted from; {} if there are none."""
  try:
    parts = files.read_json_list(Path(workdir) / provenance.FILE)
  except (OSError, ValueError):
    return {}
  origins = [part['converted_from'] for part in parts if 'converted_from' in part]
  values = origins[0].get('config', {}) if origins else {}
  return {key: values[key] for key in TOKEN_IDS if key in values}
