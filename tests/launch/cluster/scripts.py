"""What the scripts under test lie in and call: their folder,
and programs that stand in for the real ones.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / 'launch' / 'cluster'
PYTHON_BIN = Path(sys.executable).parent


def fake(path: Path, script: str) -> Path:
  """Writes a program of bash. Returns the folder it lies in, to be put at the front of PATH."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{script}\n')
  path.chmod(0o755)
  return path.parent
