"""Keeps compiled programs on disk: the second start of a program reads what the first compiled.

This is JAX's own compilation cache, used only where it reads back what it wrote. A separate process
tries that once, so that not even a crash harms the program that asks. Only that process imports
jax.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

_FOLDER, _MOST_BYTES = 'JAX_COMPILATION_CACHE_DIR', 'JAX_COMPILATION_CACHE_MAX_SIZE'
# A user who sets one of these has chosen.
_CHOSEN = (_FOLDER, 'JAX_ENABLE_COMPILATION_CACHE')
_DEFAULT_BYTES = 2 << 30
_SECONDS = 120
_VERDICT, _RIGHT = 'reads-back', 'yes'


def keep() -> None:
  """Makes JAX keep what it compiles in the user's cache folder: at most 2 GiB, the least used
  programs go first. Call it before jax is imported.

  Does nothing if JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE is set. Prints the
  reason and does nothing where what is read back is not what was compiled.
  """
  if any(name in os.environ for name in _CHOSEN):
    return
  folder = _folder()
  verdict = folder / _VERDICT
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not verdict.exists():
      print(f'trying once whether compiled programs can be kept in {folder}', file=sys.stderr)
      verdict.write_text(_tried(folder), encoding='utf-8')
    found = verdict.read_text(encoding='utf-8')
  except OSError as error:
    found = str(error)
  if found != _RIGHT:
    print(f'compiled programs are not kept: {found} ({verdict})', file=sys.stderr)
    return
  os.environ[_FOLDER] = str(folder)
  os.environ.setdefault(_MOST_BYTES, str(_DEFAULT_BYTES))


def _folder() -> Path:
  """The cache folder for this jaxlib and this kind of CPU: programs of others may not run here."""
  cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  flags = Path('/proc/cpuinfo')
  known = flags.read_text(encoding='utf-8').split('\n\n')[0] if flags.is_file() else ''
  kind = [line for line in known.splitlines() if line.startswith(('flags', 'Features'))]
  digest = hashlib.sha256(f'{platform.machine()} {kind}'.encode()).hexdigest()[:8]
  return Path(cache) / 'deepseek-moe' / f'jaxlib-{importlib.metadata.version("jaxlib")}-{digest}'


def _tried(folder: Path) -> str:
  """'yes' if compiled programs can be kept, else why not."""
  scratch = folder / f'trial-{os.getpid()}'
  environment = os.environ | {_FOLDER: str(scratch), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-P', '-m', 'moe.compiled']
  try:
    done = subprocess.run(
      command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
  except subprocess.TimeoutExpired:
    return f'the trial took more than {_SECONDS} s'
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  if done.returncode == 0:
    return _RIGHT
  return (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]


def _main() -> None:
  """The trial: compiles, stores, forgets and reads back a program with what steps are made of:
  loops, products, sorting, writes by index. Exits with an error unless the program is read back and
  computes the same bits.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax import lax

  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  hits = []
  jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith('/cache_hits') else None
  )

  def objective(w_DF, x_TD):
    scores_TK, chosen_TK = lax.top_k(jax.nn.softmax(x_TD @ w_DF), 4)
    rows_TF = jnp.zeros((len(x_TD), w_DF.shape[1])).at[chosen_TK[:, 0]].add(x_TD @ w_DF)
    halve = lambda state: (state[0] + 1, jnp.sort(state[1]) / 2)
    _, rows_TF = lax.while_loop(lambda state: state[0] < 3, halve, (0, lax.stop_gradient(rows_TF)))
    summed, _ = lax.scan(lambda total, row_F: (total + row_F, None), rows_TF[0], rows_TF)
    return (scores_TK * jax.nn.silu(x_TD @ w_DF)[:, :4]).sum() + summed.sum()

  generator = np.random.default_rng(0)
  given = [generator.normal(size=shape).astype(np.float32) for shape in ((64, 48), (96, 64))]
  run = lambda: jax.device_get(jax.jit(jax.value_and_grad(objective))(*given))
  compiled = run()
  hits.clear()
  jax.clear_caches()
  read_back = run()
  if not hits:
    sys.exit('what was kept is not read back')
  for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(read_back), strict=True):
    if np.asarray(a).tobytes() != np.asarray(b).tobytes():
      sys.exit('what is read back computes something else')


if __name__ == '__main__':
  _main()
