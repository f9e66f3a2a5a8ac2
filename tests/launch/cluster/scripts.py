"""The folder of the scripts under test, and stand-ins for the programs that they call."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / 'launch' / 'cluster'
PYTHON_BIN = Path(sys.executable).parent


def fake(path: Path, script: str) -> Path:
  """Writes a bash program; returns its folder, to be put at the front of PATH."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{script}\n')
  path.chmod(0o755)
  return path.parent
