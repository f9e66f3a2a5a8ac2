"""The configuration that the other files of this folder start from:
the paper's 2B DeepSeekMoE (Table 7).

`moe/config.py` declares every key once, with its default, range and meaning; docs/configuration.md
lists them. A config file changes values and adds no key. Importing one loads no jax.
`moe/config.py` turns the result into frozen dataclasses and rejects wrong values.
"""

from ml_collections import ConfigDict

from moe import config as moe_config


def expert_width(d_model: int, relative_size: float, multiple_of: int = 8) -> int:
  """Hidden width of an expert `relative_size` times a standard FFN (8/3 · d_model),
  rounded up to a multiple.

  The paper rounds to multiples of 64 from 16B upward. Its 2B widths (853.3, 3413.3) are not
  integers; multiples of 8 stay within 0.4% of them.
  """
  return int(-(-(relative_size * 8 * d_model / 3 - 1e-6) // multiple_of)) * multiple_of


def get_config() -> ConfigDict:
  return moe_config.defaults()
