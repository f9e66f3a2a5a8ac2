"""The only list of layouts. A new one takes a file with a `Layout`, and a line in LAYOUTS."""

from moe.config import Config
from moe.convert.layouts import deepseek, llama
from moe.convert.layouts.common import Layout

# By `model_type` of config.json.
LAYOUTS: dict[str, Layout] = {
  'deepseek': deepseek.LAYOUT,
  'llama': llama.LAYOUT,
}


def name_for(config: Config) -> str:
  """The layout in which a model is written: llama if it is dense, else deepseek."""
  return 'deepseek' if config.model.num_moe_layers else 'llama'
