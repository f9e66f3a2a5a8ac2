"""The configuration that the other files of this folder start from:
the paper's 2B DeepSeekMoE (Table 7).

`moe/config.py` declares every key once, with its default, range and meaning; docs/configuration.md
lists them. A config file changes values and adds no key. Opening one imports ml_collections only.
`moe/config.py` turns the result into frozen dataclasses, and says so when a value is wrong.
"""

from ml_collections import ConfigDict

from moe import config as moe_config


def expert_width(d_model: int, relative_size: float, multiple_of: int = 8) -> int:
  """Hidden width of an expert `relative_size` times a standard FFN (8/3 · d_model),
  rounded up to a multiple.

  The paper rounds to 64 from 16B upward; its 2B widths (853.3, 3413.3) are no integers,
  and 8 keeps them within 0.4%.
  """
  return int(-(-(relative_size * 8 * d_model / 3 - 1e-6) // multiple_of)) * multiple_of


def get_config() -> ConfigDict:
  return moe_config.defaults()
