"""A training step of the same model by Hugging Face's transformers, if it and torch are
installed: forward, backward, clipping and AdamW on the same tokens.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks import hugging_face
from moe.config import Config
from moe.convert.layouts import LAYOUTS, name_for
from moe.data.packing import Batch
from moe.errors import UserError

# Without batched_mm: it copies a matrix for every row, which takes more memory than there is.
_EXPERTS = ('grouped_mm', 'eager')
_UNITS = ('avx512_bf16', 'amx_bf16')


def has_bfloat16_units() -> bool:
  """Whether this CPU multiplies bfloat16 itself."""
  try:
    flags = Path('/proc/cpuinfo').read_text()
  except OSError:
    return False
  return any(unit in flags for unit in _UNITS)


def train_step(config: Config, batch: Batch) -> tuple[Callable[[], None], str]:
  """A function that runs one step after another, and a note on how its experts are computed: in the
  way that is fastest here. UserError if transformers is not installed or runs in none of the ways.
  """
  if not hugging_face.is_installed():
    raise UserError('--peer=transformers needs it: pip install torch transformers')
  if name_for(config) == 'llama':
    return _step(config, batch, _EXPERTS[0]), ''
  fastest, faults = None, []
  for experts in _EXPERTS:
    run = _step(config, batch, experts)
    try:
      run()
      began = time.perf_counter()
      run()
      seconds = time.perf_counter() - began
      print(f'transformers, {experts}: {seconds:.2f} s', file=sys.stderr, flush=True)
      if fastest is None or seconds < fastest[0]:
        fastest = seconds, experts, run
    except (RuntimeError, NotImplementedError, ValueError) as error:
      faults.append(f'{experts}: {error}')
      print(f'transformers, {faults[-1]}', file=sys.stderr, flush=True)
  if fastest is None:
    raise UserError(f'transformers runs no experts here: {"; ".join(faults)}')
  _, experts, run = fastest
  return run, f' ({experts})'


def _step(config, batch, experts):
  import torch

  torch.manual_seed(0)
  model = hugging_face.untrained(LAYOUTS[name_for(config)].to_json(config), experts)
  for name, w in model.named_parameters():
    if not name.endswith('norm.weight'):
      torch.nn.init.normal_(w, std=config.model.init_std)
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
  ids, targets = (torch.from_numpy(np.asarray(x, np.int64)) for x in batch[:2])
  is_bfloat16 = config.model.dtype == 'bfloat16'

  def run():
    with torch.autocast('cpu', torch.bfloat16, enabled=is_bfloat16):
      logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

  return run
