"""The programs, flags to one call each: `python -m launch.NAME`, or `deepseek-moe NAME` once installed."""

import sys
from pathlib import Path

# `python -m` looks into the folder at hand first: what somebody there calls `experiments` or `moe` is not ours.
sys.path.insert(0, str(Path(__file__).parents[1]))
