"""Layouts: one file each, and the only list of them. A new one is a file with a `Layout` and a
line in LAYOUTS.
"""

from moe.config import Config
from moe.convert.layouts import deepseek, llama
from moe.convert.layouts.common import Layout

# By `model_type` of config.json.
LAYOUTS: dict[str, Layout] = {
  'deepseek': deepseek.LAYOUT,
  'llama': llama.LAYOUT,
}


def name_for(config: Config) -> str:
  """The layout that a model is written in: dense ones as llama."""
  return 'deepseek' if config.model.num_moe_layers else 'llama'
