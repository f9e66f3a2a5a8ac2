"""Makes the start of a MoE run from a dense run. Embedding, attention, norms and head stay as they
are, each FFN is dealt out to shared and routed experts (division.py), and the router is new.

This is sparse upcycling (Komatsuzaki et al., arXiv 2212.05055) to fine-grained experts, which need
groups that are chosen together (He et al., arXiv 2410.07524). docs/weights.md says what is equal
at the first step.

N layers, E routed experts, D model width, F hidden width of an expert, G experts per group.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe.config import Config
from moe.convert import checkpoints, new_run, table
from moe.convert.dense import Dense
from moe.convert.division import Division, divide
from moe.convert.layouts.common import not_of_the_paper
from moe.convert.outputs import new_folder
from moe.convert.parameters import Box, Source
from moe.errors import UserError

ROUTERS = ('even', 'random')
# Standard deviation of an even router's logits: large enough that tokens go to different groups,
# small enough that a gate is 1/E to about one part in 500,000.
_EVEN = 1e-6
# Keys of `model` that must be equal in the dense and the new config.
_EQUAL = (
  *('vocab_size', 'num_layers', 'd_model', 'num_heads', 'num_kv_heads', 'head_dim'),
  *('rope_base', 'norm_eps'),
)


class Upcycled(NamedTuple):
  """What `upcycle` has made."""

  step: int  # of the dense run
  parameters: int
  bytes: int
  notes: tuple[str, ...]  # for the user, a line each

  @property
  def in_words(self) -> str:
    return f'{self.parameters:,} parameters of step {self.step}, {self.bytes / 1e9:,.2f} GB'


@dataclasses.dataclass(frozen=True)
class Options:
  """How to upcycle.

  step: of the dense run; None takes the newest. dtype: of the parameters, 'bfloat16' or 'float32';
  None keeps the dense run's types. router: one of ROUTERS.
  """

  step: int | None = None
  dtype: str | None = None
  router: str = 'even'
  seed: int = 0


def upcycle(
  source: str | Path, config: Config, workdir: str | Path, options: Options = Options()
) -> Upcycled:
  """Makes the folder `workdir`, a run of `config` with one checkpoint, step 0, from the dense run
  in `source`.

  UserError for anything that does not fit, or a damaged checkpoint; then there is no `workdir`.
  """
  target = new_folder('workdir', workdir)
  opened = checkpoints.open_checkpoint(source, options.step, '--upcycle')
  _check(opened.config, config, opened.path)
  generator = np.random.Generator(np.random.PCG64(options.seed))
  division = divide(config, opened.config.model.d_ff, generator)
  dense = Dense(opened)
  make = _Maker(config, dense, division, options, generator)
  placed = table.as_they_are(config)
  types = {name: np.dtype(options.dtype or dense.dtype(make.origin(name))) for name in placed}
  sources = {
    name: Source(each, types[name], make.filler(name, types[name])) for name, each in placed.items()
  }
  origin = {
    'upcycled_from': {**dense.identity, 'router': options.router, 'seed': options.seed},
  }
  size = new_run.write(
    target, 'upcycling', config, opened.tokenizer, sources, origin, dense.check_all_read
  )
  count = sum(each.size for each in placed.values())
  return Upcycled(opened.step, count, size, tuple(_told(config, division, options, types)))


def check(dense: Config, config: Config, where: object) -> None:
  """UserError unless the new config differs from the dense one only in the FFNs, and a token's
  experts can hold a dense FFN. `where`: the dense run's name in messages.
  """
  _check(dense, config, where)
  divide(config, dense.model.d_ff, np.random.Generator(np.random.PCG64(0)))


def _check(dense, config, where):
  model, moe = config.model, config.moe
  if dense.model.num_moe_layers:
    raise UserError(
      f'{where} has experts already (model.num_dense_layers={dense.model.num_dense_layers} of '
      f'{dense.model.num_layers} layers): --upcycle takes a dense run'
    )
  if not config.has_routed_experts:
    raise UserError(
      f'--config has no routed experts (model.num_dense_layers={model.num_dense_layers} of '
      f'{model.num_layers} layers, moe.num_experts={moe.num_experts}): --upcycle makes a MoE run'
    )
  if moe.router not in ('softmax', 'hash'):
    raise UserError(
      f"moe.router={moe.router!r}: --upcycle knows the gates of 'softmax' and 'hash' only"
    )
  for name, plain in not_of_the_paper(moe):
    if name != 'router':
      raise UserError(
        f'moe.{name}={getattr(moe, name)!r}: --upcycle knows gates as the paper has them, '
        f'moe.{name}={plain!r}; a run that starts from the upcycled one (train.init_from) may '
        "change keys that keep the weights' shapes, with train.init_skip for new weights"
      )
  if config.finetune.trainable != 'all':
    raise UserError(
      f'finetune.trainable={config.finetune.trainable}: leave it out: a run that trains a part of '
      'its model starts from the upcycled one with train.init_from'
    )
  if config.train.init_from:
    raise UserError(
      f'train.init_from={config.train.init_from}: leave it out: the weights are those of --upcycle'
    )
  keys = (*_EQUAL, 'd_ff') if model.num_dense_layers else _EQUAL
  different = [
    f'model.{key}={getattr(model, key)} (there {getattr(dense.model, key)})'
    for key in keys
    if getattr(model, key) != getattr(dense.model, key)
  ]
  if different:
    raise UserError(
      f'{where} has other values: {", ".join(different)}; set these keys to its values'
    )


class _Maker:
  """Fills the parameters of the new run."""

  def __init__(
    self,
    config: Config,
    dense: Dense,
    division: Division,
    options: Options,
    generator: np.random.Generator,
  ):
    self._config, self._dense, self._division = config, dense, division
    moe, copies_X = config.moe, division.copies_X
    # The sum of the gates on one part over a token's groups: 1 with the hash router, which chooses
    # one group; with an even router, 1/E for each of them.
    gate = 1 if moe.router == 'hash' else division.groups / moe.num_experts
    experts = np.arange(moe.num_experts)
    units_EF = division.parts_GF[experts % division.group]
    self._units = {
      'experts': units_EF,
      'shared': division.shared_X[None],
    }
    self._weights = {
      'experts': 1 / (gate * copies_X),
      'shared': 1 / copies_X,
    }
    self._router_NDE = _router(config, division, options, generator)

  def origin(self, name: str) -> str:
    """The dense run's parameter from which this one is made. A router, which is new, names one
    whose type it takes.
    """
    if not name.startswith('moe_blocks.'):
      return name
    inner = name.removeprefix('moe_blocks.')
    if not inner.startswith('moe.'):
      return f'dense_blocks.{inner}'
    kind, _, leaf = inner.removeprefix('moe.').partition('.')
    if kind in ('experts', 'shared'):
      return f'dense_blocks.mlp.{leaf}'
    if (kind, leaf) == ('router', 'experts'):
      return 'dense_blocks.mlp.gate'
    raise UserError(f'--upcycle does not know what to make the parameter {name} of')

  def filler(self, name: str, dtype: np.dtype) -> Callable[[Box], np.ndarray]:
    """Returns the function that makes a box of a parameter."""
    first = self._config.model.num_dense_layers if name.startswith('moe_blocks.') else 0
    origin = self.origin(name)
    if name.startswith('moe_blocks.moe.router.'):
      return lambda box: np.ascontiguousarray(self._router_NDE[box]).astype(dtype)
    if name.startswith('moe_blocks.moe.'):
      return lambda box: self._segments(name, origin, first, dtype, box)
    return lambda box: self._dense.read(origin, _shifted(origin, box, first)).astype(
      dtype, copy=False
    )

  def _segments(self, name, origin, first, dtype, box):
    """A box of experts' matrices, gathered from the dense matrices of the same layers."""
    kind = name.split('.')[2]
    units_EF, weights_X = self._units[kind], self._weights[kind]
    layers, *experts, rows, columns = box
    experts = experts[0] if experts else slice(0, 1)
    content = np.empty([each.stop - each.start for each in (layers, experts, rows, columns)], dtype)
    for layer in range(layers.start, layers.stop):
      matrix = self._dense.matrix(origin, first + layer)
      for expert in range(experts.start, experts.stop):
        of_expert = content[layer - layers.start, expert - experts.start]
        if name.endswith('.down'):
          units = units_EF[expert, rows]
          of_expert[...] = matrix[units, columns].astype(np.float32) * weights_X[
            units, None
          ].astype(np.float32)
        else:
          of_expert[...] = matrix[rows, units_EF[expert, columns]]
    return content if len(box) == 4 else content[:, 0]


def _shifted(origin, box, first):
  """The same box in the dense run's parameter, whose stack begins `first` layers earlier."""
  if not origin.startswith('dense_blocks.'):
    return box
  return (slice(box[0].start + first, box[0].stop + first), *box[1:])


def _router(config, division, options, generator):
  """router_NDE, float32: all experts of a group have the same column. Experts of no whole group
  have the mean of all columns, so their logit is never the largest. None for the hash router.
  """
  model, moe = config.model, config.moe
  if moe.router == 'hash':
    return None
  whole = moe.num_experts // division.group
  std = model.init_std if options.router == 'random' else _EVEN / np.sqrt(model.d_model)
  left = moe.num_experts - whole * division.group
  if whole == 1 and left:
    # The mean would equal the only column. With zeros all gates are equal, and ties go to the first
    # experts, which form the group.
    std = 0.0
  shape = model.num_moe_layers, model.d_model, whole
  columns_NDC = generator.normal(0, std, shape).astype(np.float32)
  mean_ND1 = columns_NDC.mean(axis=-1, keepdims=True)
  return np.concatenate(
    [np.repeat(columns_NDC, division.group, axis=-1), np.repeat(mean_ND1, left, axis=-1)], axis=-1
  )


def _told(config, division, options, types):
  """Yields notes on what equals the dense run at the first step, and what does not."""
  moe, copies_X = config.moe, division.copies_X
  low, high = copies_X.min(), copies_X.max()
  times = f'{low}' if low == high else f'{low} or {high}'
  yield (
    f'each hidden unit of the dense FFN is {times} times in the shared experts and a group of '
    f'{division.group}; a token goes to {division.groups} of '
    f'{moe.num_experts // division.group} groups'
  )
  if moe.router == 'softmax' and options.router == 'random':
    yield 'the gates of a random router are not even: the first step is not the dense run'
  if left := moe.num_experts % division.group:
    yield f'the last {left} experts are of no whole group: no token goes to them at first'
  down = types['moe_blocks.moe.experts.down']
  if down.name == 'bfloat16' and (low != high or high > 1 or moe.router != 'hash'):
    yield 'weighted down projections are rounded to bfloat16: --dtype=float32 keeps them'
