"""What was converted, and how it was checked: `make verify-weights`.

Every case is a checkpoint of random weights, taken through the programs as a user would: in from
the released layout, out again, and out as GGUF. It writes experiments/results/weights.jsonl, and
the table of docs/weights.md. Some minutes, 10 GB of disk, and 12 GB of memory for the largest.
"""

import datetime
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import safe_open

from experiments.benchmarks.tokenizer import train_like_deepseek
from experiments.notebooks import released
from experiments.notebooks.released import DEEPSEEK, tensors, write
from experiments.sweeps import machine
from moe import files
from moe.convert.to_gguf import FILE
from moe.generate import Sampling, generate_tokens
from moe.run import load_run
from tests.moe.convert import llama_cpp
from tests.moe.convert.hf_checkpoint import CASES
from tests.moe.convert.test_tokenizers import TEXTS

ROOT = Path(__file__).parents[3]
RESULTS, PAGE = ROOT / 'experiments/results/weights.jsonl', ROOT / 'docs/weights.md'
BEGIN, END = '<!-- written by make verify-weights -->\n', '<!-- end -->\n'
PROMPTS, NEW_TOKENS = 4, 32
# What the system tells a parent includes the parent's own memory, of before the program began.
_MEASURED = """
import atexit, runpy
peak = lambda: open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]
atexit.register(lambda: print(peak()))
runpy.run_module('launch.convert', run_name='__main__', alter_sys=True)
"""
# DeepSeekMoE 16B but for the number of layers.
_16B = DEEPSEEK | {
  **{'vocab_size': 102400, 'hidden_size': 2048, 'intermediate_size': 10944},
  **{'moe_intermediate_size': 1408, 'num_hidden_layers': 2, 'num_attention_heads': 16},
  **{'num_key_value_heads': 16, 'n_routed_experts': 64, 'num_experts_per_tok': 6},
  **{'max_position_embeddings': 4096, 'torch_dtype': 'bfloat16'},
}


def main():
  commit, lines = machine.commit(), []
  cases = {name: hf | {'vocab_size': 448} for name, hf in CASES.items()}
  for name, hf in (cases | {'16B shapes, 2 layers': _16B}).items():
    with tempfile.TemporaryDirectory() as folder:
      line = {'what': name, **verify(hf, Path(folder)), 'commit': commit}
    line['date'] = datetime.date.today().isoformat()
    lines.append(line | {'llama_cpp': f'xllamacpp {importlib.metadata.version("xllamacpp")}'})
    print(files.to_json(lines[-1]), flush=True)
    files.replace(RESULTS, ''.join(files.to_json(each) + '\n' for each in lines))
    before, _, rest = PAGE.read_text(encoding='utf-8').partition(BEGIN)
    files.replace(PAGE, before + BEGIN + table(lines) + END + rest.partition(END)[2])


def verify(hf: dict, folder: Path) -> dict:
  """One case. What fails, raises."""
  is_large = hf['torch_dtype'] == 'bfloat16'
  kind = ml_dtypes.bfloat16 if is_large else np.float32
  weights = tensors(hf, dtype=kind, std=0.02 if is_large else 0.2)
  source = write(folder / 'hf', hf, weights)
  (source / 'tokenizer.json').write_bytes(train_like_deepseek(TEXTS, 400))
  run_folder = f'--workdir={folder}/run'
  # Comparisons are in float32, which holds every bfloat16 number.
  come_in = convert(f'--from={source}', run_folder, '--dtype=float32')
  out = convert('--to=hf', run_folder, f'--out={folder}/out', f'--dtype={hf["torch_dtype"]}')
  same_bytes(folder / 'out', weights)
  shutil.rmtree(folder / 'out')
  shutil.rmtree(source)
  to_gguf = convert('--to=gguf', run_folder, f'--out={folder}/gguf')
  tokens_L = np.random.default_rng(1).integers(0, 400, 16)
  truth_LV = released.logits(hf, weights, tokens_L)
  del weights
  run = load_run(folder / 'run')
  params, ids_BL = {'params': run.params}, jnp.asarray(tokens_L)[None]
  positions_BL, segments_BL = jnp.arange(len(tokens_L))[None], jnp.ones_like(ids_BL)
  hidden_BLD, _, _ = run.model.apply(params, ids_BL, positions_BL, segments_BL)
  logits_LV = np.asarray(run.model.apply(params, hidden_BLD, method='logits')[0])
  prompts = [[run.tokenizer.bos_id, *run.tokenizer.encode(text)[:12]] for text in TEXTS[:PROMPTS]]
  new_BN, counts_B = generate_tokens(run, prompts, NEW_TOKENS, Sampling(), 0)
  ours = [ids[:count].tolist() for ids, count in zip(new_BN, counts_B, strict=True)]
  ends = run.tokenizer.bos_id, run.tokenizer.eos_id
  del run, params
  with llama_cpp.opened(folder / 'gguf' / FILE) as server:
    theirs = [server.greedy(prompt, NEW_TOKENS, *ends) for prompt in prompts]
  agreed = sum(common(a, b) for a, b in zip(ours, theirs, strict=True))
  return {
    'gb': sum(np.prod(shape) for shape in released.shapes(hf).values()) * kind(0).nbytes / 1e9,
    'tensors': len(released.shapes(hf)),
    'largest_logit': float(abs(truth_LV).max()),
    'largest_difference': float(abs(logits_LV - truth_LV).max()),
    'greedy_tokens': sum(map(len, ours)),
    'greedy_agreed': agreed,
    **{'from': come_in, 'to_hf': out, 'to_gguf': to_gguf},
  }


def convert(*flags: str) -> dict:
  """Runs launch.convert: its time and peak memory, Python and JAX included."""
  begin = time.monotonic()
  command = [sys.executable, '-c', _MEASURED, *flags]
  told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
  peak_kib = int(told.splitlines()[-1])
  return {'seconds': round(time.monotonic() - begin, 1), 'peak_mb': peak_kib * 1024 // 1_000_000}


def same_bytes(folder: Path, weights: dict[str, np.ndarray]) -> None:
  """Raises unless the files in a folder hold these tensors and no others."""
  left = set(weights)
  for path in folder.glob('*.safetensors'):
    with safe_open(path, 'numpy') as file:
      for name in file.keys():  # noqa: SIM118
        if file.get_tensor(name).tobytes() != weights[name].tobytes():
          raise SystemExit(f'{name} has not come back byte for byte')
        left.remove(name)
  if left:
    raise SystemExit(f'{len(left)} tensors have not come back')


def common(a: list[int], b: list[int]) -> int:
  """How many tokens of two completions are equal before the first that is not."""
  return next(
    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
  )


def table(lines: list[dict]) -> str:
  """Markdown."""
  cost = lambda each: f'{each["seconds"]:.0f} s, {each["peak_mb"] / 1000:.2f} GB'
  head = [
    *('checkpoint', 'GB', 'tensors, out byte for byte', 'largest logit difference (of)'),
    *('greedy tokens equal', '`--from`', '`--to=hf`', '`--to=gguf`', 'commit', 'date'),
  ]
  rows = [head, ['---'] * len(head)]
  for line in lines:
    difference = f'{line["largest_difference"]:.0e} ({line["largest_logit"]:.0f})'
    greedy = f'{line["greedy_agreed"]} of {line["greedy_tokens"]}'
    costs = [cost(line[name]) for name in ('from', 'to_hf', 'to_gguf')]
    row = [line['what'], f'{line["gb"]:.2g}', f'{line["tensors"]:,}', difference, greedy]
    rows.append([*row, *costs, line['commit'][:7], line['date']])
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


if __name__ == '__main__':
  main()
