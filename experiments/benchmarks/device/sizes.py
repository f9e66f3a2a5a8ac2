"""The sizes of what is measured: layers, a training step and a model that decodes, of the 2B and
the 16B; or small ones.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import scaling, validation, variants
from moe.config import Config, from_config_dict
from moe.planner.kernels.programs import PAPER, Shape


class Sizes(NamedTuple):
  layers: tuple[Shape, Shape]  # of the 2B and of the 16B
  product: int  # rows, columns and depth of the big product
  copied: int  # bytes of the big copy
  train: Config  # run with as many of its layers as fit into memory
  decode: Config  # likewise
  batches: tuple[int, int]  # numbers of sequences decoded at once
  prompt: int
  new: int  # tokens


def of_platform(platform: str) -> Sizes:
  """The sizes for a platform. A CPU gets small ones: the same code, but its speed says nothing."""
  return _small() if platform == 'cpu' else _full()


def _full():
  # 8 sequences, the microbatch of one of 8 chips.
  train = {'name': '2b', 'data.batch_size': 8, 'train.microbatches': 1}
  # The dense layer and three MoE layers.
  decode = {'name': '16b', 'model.num_layers': 4}
  return Sizes(
    PAPER[:2],
    product=8192,
    copied=2**30,
    train=_config(validation.get_config('deepseek_moe'), train),
    decode=_config(scaling.get_config('deepseek_moe_16b'), decode),
    batches=(1, 16),
    prompt=64,
    new=64,
  )


def _small():
  small = {
    'model.vocab_size': 64,
    'moe.num_experts': 8,
    'moe.experts_per_token': 3,
    'data.vocab_size': 0,
    'data.seq_len': 32,
    'data.batch_size': 2,
    'train.microbatches': 1,
    'train.loss_chunk': 32,
  }

  def shrunk(config, name):
    return _config(config, variants.resized(config, 2, 32, 16) | small | {'name': name})

  return Sizes(
    (
      Shape('small 2b', 2, 16, 32, 2, 16, 8, 3, 24),
      Shape('small 16b', 1, 32, 48, 3, 16, 8, 2, 40),
    ),
    product=128,
    copied=2**16,
    train=shrunk(validation.get_config('deepseek_moe'), 'small 2b'),
    decode=shrunk(scaling.get_config('deepseek_moe_16b'), 'small 16b'),
    batches=(1, 2),
    prompt=4,
    new=8,
  )


def _config(config: ConfigDict, overrides: dict) -> Config:
  config.update_from_flattened_dict(overrides)
  return from_config_dict(config)
