"""Which experts a task needs: the fewest of each layer that together reach a share of its relevance
(ESFT, arXiv 2407.01906, Section 3.3), as a file that people read and edit.

N MoE layers, E routed experts.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from moe import files
from moe.analysis.relevance import Relevance, relevance
from moe.data.store import PreparedData
from moe.errors import UserError
from moe.inspection import Run
from moe.run import folder
from moe.storage import small_items
from moe.warm_start.source import identity_of


class Chosen(NamedTuple):
  """The chosen experts of one layer, the most relevant first."""

  experts: list[int]
  scores: list[float]  # shares of the layer's sum


def select(
  run: Run,
  data: PreparedData,
  by: str,
  mass: float,
  max_batches: int | None = None,
  seed: int = 0,
) -> tuple[list[Chosen], int]:
  """The chosen experts of each layer, and how many tokens of the held-out text were looked at.

  Args:
    by: 'gate', the sum of an expert's gates over the tokens; 'share', how many tokens chose it;
      'random', as many as 'gate' chooses, drawn from `seed`.
    mass: share of a layer's sum that the chosen experts reach together, above 0 and at most 1.
  """
  check_mass(mass)
  with run.on_mesh():
    found = relevance(run.config, run.params, data, run.mesh, max_batches)
  scores_NE = scores(found, 'gate' if by == 'random' else by)
  layers = [of_layer(scores_E, mass) for scores_E in scores_NE]
  if by == 'random':
    generator = np.random.default_rng(seed)
    layers = [
      drawn(scores_E, len(chosen.experts), generator)
      for scores_E, chosen in zip(scores_NE, layers, strict=True)
    ]
  return layers, found.tokens


def reading(run: Run, is_chat: bool | None) -> Run:
  """The run with `data.format` for conversations, or for texts; None: as it was trained."""
  if is_chat is None:
    return run
  data = dataclasses.replace(run.config.data, format='chat' if is_chat else 'text')
  return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))


def scores(found: Relevance, by: str) -> np.ndarray:
  """scores_NE float64: shares of each layer's sum."""
  values_NE = np.asarray(found.gates_NE if by == 'gate' else found.counts_NE, np.float64)
  return values_NE / values_NE.sum(axis=1, keepdims=True)


def of_layer(scores_E: np.ndarray, mass: float) -> Chosen:
  """The fewest experts whose scores add up to `mass`; of equal ones, the lower number first."""
  order = np.argsort(-scores_E, kind='stable')
  # The tolerance keeps rounding of the sum from adding an expert.
  count = int(np.searchsorted(np.cumsum(scores_E[order]), mass - 1e-9)) + 1
  return _chosen(scores_E, order[: min(count, len(order))])


def drawn(scores_E: np.ndarray, count: int, generator: np.random.Generator) -> Chosen:
  """`count` experts, each as likely as any other."""
  experts = generator.choice(len(scores_E), count, replace=False)
  return _chosen(scores_E, experts[np.argsort(-scores_E[experts], kind='stable')])


def _chosen(scores_E, experts):
  return Chosen([int(e) for e in experts], [round(float(scores_E[e]), 6) for e in experts])


def check_mass(mass: float) -> None:
  if not 0 < mass <= 1:
    raise UserError(f'--mass={mass} must be above 0 and at most 1: a share of the scores')


def write(path: Path, layers: list[Chosen], about: dict) -> None:
  """Writes a JSON file with a line per layer, whose 'experts' `finetune.experts` reads. `about`
  says how it was made.
  """
  lines = [
    json.dumps({'layer': number, **chosen._asdict(), 'sum': round(sum(chosen.scores), 6)})
    for number, chosen in enumerate(layers)
  ]
  head = json.dumps(about, indent=2, ensure_ascii=False)[:-2]
  body = ',\n    '.join(lines)
  files.replace(path, f'{head},\n  "layers": [\n    {body}\n  ]\n}}\n')


def checkpoint(workdir: str, step: int) -> dict:
  """The identity of a run's checkpoint: {'path', 'step', 'checksum'}."""
  directory = folder(workdir)
  small = small_items.read(directory / 'checkpoints' / str(step))
  if '://' not in workdir:
    directory = epath.Path(os.path.realpath(directory))
  return identity_of(directory, step, small)


def check_target(written: str) -> Path:
  """The file to write. UserError if it exists already, or cannot be written."""
  path = Path(written).expanduser()
  if '://' in written or not written.strip():
    raise UserError(f'--out={written}: it must be a file on this machine')
  if path.exists() or path.is_symlink():
    raise UserError(f'--out={written}: File exists; choose another name, or delete it')
  files.try_folder(path.parent, 'the choice')
  return path


def table(layers: list[Chosen], num_experts: int) -> str:
  """The table for people: for each layer, how many experts, and the most relevant of them."""
  lines = [f'{"MoE layer":>9}{"chosen":>8}{"score":>8}  most relevant']
  for number, chosen in enumerate(layers):
    first = ', '.join(
      f'{e} ({s:.3f})' for e, s in list(zip(chosen.experts, chosen.scores, strict=True))[:4]
    )
    lines.append(f'{number:>9}{len(chosen.experts):>8}{sum(chosen.scores):>8.3f}  {first}')
  total = sum(len(chosen.experts) for chosen in layers)
  of = num_experts * len(layers)
  lines.append(f'{"all":>9}{total:>8}{"":>8}  of {of}, {total / of:.1%}')
  return '\n'.join(lines)
