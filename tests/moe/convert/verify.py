"""Converts checkpoints and records how the results were checked: `make verify-weights`.

Every case is a checkpoint of random weights, taken through the programs as a user would: in from
the released layout, out again, and out as GGUF. It writes experiments/results/weights.jsonl, and
the tables of docs/weights.md. It takes a quarter of an hour, 30 GB of disk, and 12 GB of memory for
the largest case. `python -m tests.moe.convert.verify CASE` runs one case alone.
"""

import datetime
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from experiments.benchmarks import llama_cpp
from experiments.benchmarks.tokenizer import train_like_deepseek
from experiments.notebooks import released
from experiments.notebooks.released import DEEPSEEK, tensors, write
from experiments.sweeps import machine
from moe import files
from moe.convert.to_gguf import FILE
from moe.generate import Sampling, generate_tokens
from moe.run import load_run
from tests.moe.convert import cost
from tests.moe.convert.cost import convert, same_bytes
from tests.moe.convert.hf_checkpoint import CASES
from tests.moe.convert.test_tokenizers import TEXTS

ROOT = Path(__file__).parents[3]
RESULTS, PAGE = ROOT / 'experiments/results/weights.jsonl', ROOT / 'docs/weights.md'
BEGIN, END = '<!-- written by make verify-weights: {} -->\n', '<!-- end -->\n'
CHECKED, COST = 'checked', '16B shapes, 5 layers: cost'
PROMPTS, NEW_TOKENS, ROUNDS = 4, 32, 3
# DeepSeekMoE 16B except for the number of layers.
_16B = DEEPSEEK | {
  **{'vocab_size': 102400, 'hidden_size': 2048, 'intermediate_size': 10944},
  **{'moe_intermediate_size': 1408, 'num_hidden_layers': 2, 'num_attention_heads': 16},
  **{'num_key_value_heads': 16, 'n_routed_experts': 64, 'num_experts_per_tok': 6},
  **{'max_position_embeddings': 4096, 'torch_dtype': 'bfloat16'},
}


def main(only=None):
  """Runs every case and then the cost, or `only` one of these and replaces its line alone."""
  lines = {line['what']: line for line in map(json.loads, RESULTS.read_text().splitlines())}
  cases = {name: hf | {'vocab_size': 448} for name, hf in CASES.items()}
  of_case = lambda hf: lambda folder: verify(hf, folder)
  work = {name: of_case(hf) for name, hf in (cases | {'16B shapes, 2 layers': _16B}).items()}
  work[COST] = lambda folder: cost.measure(_16B | {'num_hidden_layers': 5}, folder, ROUNDS)
  for name in [only] if only else work:
    with tempfile.TemporaryDirectory() as folder:
      found = work[name](Path(folder))
    about = {'commit': machine.commit(), 'date': datetime.date.today().isoformat()}
    lines[name] = {'what': name, **found, **about}
    print(files.to_json(lines[name]), flush=True)
    files.replace(RESULTS, ''.join(files.to_json(lines[each]) + '\n' for each in lines))
    page = PAGE.read_text(encoding='utf-8')
    page = _with_table(page, CHECKED, table([lines[each] for each in lines if each != COST]))
    files.replace(PAGE, _with_table(page, COST, cost.table(lines[COST])) if COST in lines else page)


def verify(hf: dict, folder: Path) -> dict:
  """Runs one case and returns its record. Raises where a check fails."""
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
  ours = generate_tokens(run, prompts, NEW_TOKENS, Sampling(), 0)
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
    'llama_cpp': f'xllamacpp {importlib.metadata.version("xllamacpp")}',
  }


def common(a: list[int], b: list[int]) -> int:
  """Returns how many tokens two completions have in common before the first that differs."""
  return next(
    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
  )


def table(lines: list[dict]) -> str:
  """Returns the Markdown table of the records."""
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


def _with_table(page, name, text):
  """Returns the page with the table of this name replaced."""
  before, begin, rest = page.partition(BEGIN.format(name))
  return before + begin + text + END + rest.partition(END)[2]


if __name__ == '__main__':
  main(*sys.argv[1:])
