"""Measures time and memory of conversion in the 16B's shapes, beside `cp` of the same bytes.
`verify` runs it. It takes 30 GB of disk, and a few minutes on an idle machine.

Each conversion is paired with a `cp -r` and `sync` right before it, and rounds alternate, so that
other work on the machine slows both alike.
"""

import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from experiments.notebooks import released

ROOT = Path(__file__).parents[3]
# The program reports its own peak: the system's figure for a child includes the parent's memory
# from before the program began.
_MEASURED = """
import atexit, runpy
peak = lambda: open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]
atexit.register(lambda: print(peak()))
runpy.run_module('launch.convert', run_name='__main__', alter_sys=True)
"""


class Repeated(Mapping):
  """Tensors by name, each made on access: from one random block, repeated, starting at a place
  that the name decides.
  """

  def __init__(self, hf: dict):
    self._shapes = released.shapes(hf)
    draw = np.random.default_rng(0).normal(0, 0.02, 20_000_000)
    self._block = draw.astype(ml_dtypes.bfloat16)

  def __getitem__(self, name: str) -> np.ndarray:
    block = self._block[zlib.crc32(name.encode()) % 1_000_000 :]
    return np.resize(block, self._shapes[name])

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)


def convert(*flags: str) -> dict:
  """Runs launch.convert; returns its time and peak memory, including Python's and JAX's own."""
  begin = time.monotonic()
  command = [sys.executable, '-c', _MEASURED, *flags]
  told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
  peak_kib = int(told.splitlines()[-1])
  return {'seconds': round(time.monotonic() - begin, 1), 'peak_mb': peak_kib * 1024 // 1_000_000}


def same_bytes(folder: Path, weights: Mapping[str, np.ndarray]) -> None:
  """Raises unless the files in a folder hold these tensors and no others."""
  found = released.Opened(folder)
  if found.keys() != weights.keys():
    raise SystemExit(f'not the same tensors: {sorted(found.keys() ^ weights.keys())[:3]}')
  for name, tensor in found.items():
    if tensor.tobytes() != weights[name].tobytes():
      raise SystemExit(f'{name} has not come back byte for byte')


def measure(hf: dict, folder: Path, rounds: int) -> dict:
  """Returns the costs of converting `hf`, by round. Each round's `start` is a tiny checkpoint's
  cost, which is what Python and JAX take.
  """
  weights = Repeated(hf)
  source = released.write(folder / 'hf', hf, weights, shards=12)
  size = sum(path.stat().st_size for path in source.glob('*.safetensors'))
  tiny = released.DEEPSEEK
  released.write(folder / 'tiny', tiny, released.tensors(tiny))
  found = {'gb': size / 1e9, 'tensors': len(weights), 'rounds': []}
  for number in range(rounds):
    one = {'start': convert(f'--from={folder}/tiny', f'--workdir={folder}/small')}
    run = f'--workdir={folder}/run'
    for name, flags, made in (
      ('from', (f'--from={source}', run), 'run'),
      ('to_hf', ('--to=hf', run, f'--out={folder}/out'), 'out'),
      ('to_gguf', ('--to=gguf', run, f'--out={folder}/gguf'), 'gguf'),
    ):
      copied = _copy(source, folder / 'copy')
      one[name] = convert(*flags) | {'cp_seconds': copied}
      if name == 'to_hf' and not number:
        same_bytes(folder / 'out', weights)
      if name != 'from':
        shutil.rmtree(folder / made)
    for made in ('run', 'small'):
      shutil.rmtree(folder / made)
    found['rounds'].append(one)
    print(one, flush=True)
  return found


def table(line: dict) -> str:
  """Returns a Markdown table: medians over the rounds, and the range of the ratio."""
  rows = [
    ['', 'peak memory', 'seconds', '`cp` before it', 'ratio (rounds)', 'without start-up'],
    ['---'] * 6,
  ]
  for name, flag in (('from', '--from'), ('to_hf', '--to=hf'), ('to_gguf', '--to=gguf')):
    of = lambda key, name=name: [each[name][key] for each in line['rounds']]
    pairs = list(zip(of('seconds'), of('cp_seconds'), strict=True))
    starts = [each['start']['seconds'] for each in line['rounds']]
    ratios = [seconds / copied for seconds, copied in pairs]
    net = [
      (seconds - start) / copied for (seconds, copied), start in zip(pairs, starts, strict=True)
    ]
    rows.append(
      [
        f'`{flag}`',
        f'{max(of("peak_mb")) / 1000:.2f} GB',
        f'{statistics.median(of("seconds")):.0f}',
        f'{statistics.median(of("cp_seconds")):.0f}',
        f'{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})',
        f'{statistics.median(net):.2f}',
      ]
    )
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _copy(source, target):
  """Returns the seconds that `cp -r` and `sync` take."""
  begin = time.monotonic()
  subprocess.run(['cp', '-r', str(source), str(target)], check=True)
  subprocess.run(['sync'], check=True)
  seconds = time.monotonic() - begin
  shutil.rmtree(target)
  return round(seconds, 1)
