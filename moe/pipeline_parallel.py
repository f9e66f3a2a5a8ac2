"""Pipeline parallelism: the gradients of a batch with the layers dealt out to stages,
in the order of 1F1B.

M microbatches, S stages; a tick is one forward or one backward of one microbatch on a stage. Stage
s takes microbatch m forward at tick s + 2m and backward at tick 2S − 1 − s + 2m: never both at
once, each just after its neighbour. A batch takes 2 (M + S − 1) ticks, of which the share (S − 1) /
(M + S − 1) is idle as in 1F1B, and stage s keeps S − s inputs at most.

After a tick a stage has one partner: the next stage if it went forward, the previous one if it went
backward. The two swap their results, which each of them needs, and no other stage waits for them.
So a forward never takes as long as a backward on another stage, and a microbatch takes the time of
one forward and one backward.

A stage keeps only the input of a microbatch in flight: backward computes the stage again. The first
stage embeds and has the leading dense layers; the last has the head. If S does not divide the
layers, the last stages have fewer.

B sequences of a microbatch, L tokens each, D model width, N layers of the stack that is dealt out.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from moe.config import Config
from moe.data.packing import Batch
from moe.finetune.trained import join
from moe.layers.block import Presence
from moe.losses import Totals
from moe.metrics import telemetry
from moe.model import Transformer, stack_names
from moe.objective import Sums, add, nothing, objective, token_loss
from moe.parallel import mesh
from moe.parallel.scopes import runs
from moe.parallel.sharding import constrain

_AXIS = 'stage'


def gradients(
  config: Config,
  trained: dict,
  frozen: dict,
  batches: Batch,
  totals: Totals,
  counts_NE: jax.Array | None,
) -> tuple[dict, Sums]:
  """Gradients of the batch's objective with respect to `trained`, and its sums.

  Args:
    trained, frozen: the parameters, see `finetune.trained.split`.
    batches: Batch whose arrays have a leading axis M.
    totals: of the whole batch.
    counts_NE: the whole batch's choices, where moe.balance_scope needs them.
  """
  *before, name = stack_names(config.model)
  stacks = tuple(part.get(name, {}) for part in (trained, frozen))
  stages, layers = mesh.size(_AXIS), jax.tree.leaves(stacks)[0].shape[0]
  per_stage = -(-layers // stages)
  deal = lambda tree: jax.tree.map(lambda x: _pad(x, stages * per_stage), tree)
  schedule = _Schedule(config, name, before, layers, per_stage, stages)
  run = jax.shard_map(
    schedule.run,
    in_specs=(
      PartitionSpec(_AXIS),
      PartitionSpec(),
      PartitionSpec(),
      PartitionSpec(),
      PartitionSpec(_AXIS),
    ),
    out_specs=(PartitionSpec(_AXIS), PartitionSpec(), PartitionSpec(), PartitionSpec(_AXIS)),
    axis_names={_AXIS},
    check_vma=False,
  )
  rest = tuple(
    {key: value for key, value in part.items() if key != name} for part in (trained, frozen)
  )
  d_stack, d_rest, summed, measured = run(deal(stacks), rest, batches, totals, deal(counts_NE))
  loss, terms, (measured_before, by_domain) = summed
  d_stack, measured = jax.tree.map(lambda x: x[:layers], (d_stack, measured))
  sums = Sums(loss, terms, (telemetry.by_layer(*measured_before, measured), by_domain))
  return {**d_rest, **({name: d_stack} if d_stack else {})}, sums


def partners(parity: int, stages: int) -> list[tuple[int, int]]:
  """The pairs (sender, receiver) after ticks of a parity:
  a stage that goes forward in them swaps with the next stage.
  """
  pairs = [(stage, stage + 1) for stage in range(parity, stages - 1, 2)]
  return pairs + [(after, stage) for stage, after in pairs]


def turn(
  tick: int | jax.Array, stage: int | jax.Array, stages: int
) -> tuple[int | jax.Array, int | jax.Array]:
  """(1 for backward or 0 for forward, microbatch) of a stage at a tick;
  the stage is idle if there is no such microbatch.
  """
  is_backward = (tick - stage) % 2
  began = stage + is_backward * (2 * (stages - stage) - 1)  # tick of microbatch 0
  return is_backward, (tick - began) // 2


class _Schedule(NamedTuple):
  """One stage's work; every method runs inside the shard_map over stages.

  `stack` and `rest` are pairs of trees, the trained part and the frozen part.
  """

  config: Config
  name: str  # of the stack that is dealt out
  before: list[str]  # the stacks before it
  layers: int
  per_stage: int
  stages: int

  def run(self, stack, rest, batches, totals, counts_nE):
    stage, stages = lax.axis_index(_AXIS), self.stages
    microbatches = batches.tokens_BL.shape[0]
    part = lambda m: jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, m, keepdims=False), batches)
    work = functools.partial(self.work, totals=totals, counts_nE=counts_nE)
    swaps = [functools.partial(_swap, pairs=partners(parity, stages)) for parity in (0, 1)]

    def forward(m, received, state):
      inputs, gradients, sums = state
      inputs = lax.dynamic_update_index_in_dim(inputs, received, m % stages, 0)
      # The last stage's result goes nowhere: its backward computes all that is needed.
      with runs(1 - 1 / stages, 1 / stages):
        again = jax.named_scope('rematted_computation')(
          lambda: work(stack, rest, received, part(m))[0][0]
        )
        send = lax.cond(stage == stages - 1, lambda: received, again)
      return send, (inputs, gradients, sums)

    def backward(m, received, state):
      inputs, gradients, sums = state
      kept = lax.dynamic_index_in_dim(inputs, m % stages, keepdims=False)
      whole = lambda trained, others, x: work((trained, stack[1]), (others, rest[1]), x, part(m))
      (_, share), pull, new = jax.vjp(whole, stack[0], rest[0], kept, has_aux=True)
      # Nobody sends to the last stage: it receives zeros, as no later stage uses its result.
      *more, send = pull((received, jnp.ones_like(share)))
      return send, (inputs, jax.tree.map(jnp.add, gradients, tuple(more)), add(sums, new))

    def tick(t, carry):
      received, state = carry
      is_backward, m = turn(t, stage, stages)
      choice = jnp.where((m >= 0) & (m < microbatches), 1 + is_backward, 0)
      idle = lambda m, received, state: (received, state)
      busy = microbatches / (2 * (microbatches + stages - 1))
      with runs(1 - 2 * busy, busy, busy):
        send, state = lax.switch(choice, [idle, forward, backward], m, received, state)
      with runs(0.5, 0.5):
        return lax.switch(t % 2, swaps, send), state

    no_input = jnp.zeros(
      (*batches.tokens_BL.shape[1:], self.config.model.d_model), self.config.model.dtype
    )
    no_input = constrain(no_input, 'batch', None, None)
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
    sums = nothing(jax.eval_shape(lambda: work(stack, rest, no_input, part(0))[1]))
    inputs = constrain(
      jnp.zeros((stages, *no_input.shape), no_input.dtype), None, 'batch', None, None
    )
    state = inputs, (zeros(stack[0]), zeros(rest[0])), sums
    ticks = 2 * (microbatches + stages - 1)
    _, (_, (d_stack, d_rest), sums) = lax.fori_loop(0, ticks, tick, (no_input, state))
    on_one_stage, measured = sums.telemetry
    d_rest, loss, terms = lax.psum((d_rest, sums.loss, sums.terms), _AXIS)
    return d_stack, d_rest, (loss, terms, telemetry.over_axis(on_one_stage, _AXIS)), measured

  def work(self, stack, rest, x_BLD, batch, *, totals, counts_nE):
    """((the stage's result, its share of the objective), Sums) of one microbatch."""
    config, stage = self.config, lax.axis_index(_AXIS)
    model, rest = Transformer(self.of_one_stage()), join(*rest)
    apply = functools.partial(model.apply, {'params': {**rest, self.name: join(*stack)}})
    arguments = batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL

    def begin():
      x_BLD, measured = apply(batch.tokens_BL, method='embed'), []
      for name in self.before:
        x_BLD, aside, _ = apply(name, x_BLD, *arguments, method='run_stack')
        measured.append(aside.telemetry)
      return x_BLD, measured

    shapes_before = jax.eval_shape(begin)[1]
    with runs(1 - 1 / self.stages, 1 / self.stages):
      x_BLD, before = lax.cond(stage == 0, begin, lambda: (x_BLD, telemetry.nothing(shapes_before)))

    used = self.layers / (self.stages * self.per_stage)
    is_used_N = stage * self.per_stage + jnp.arange(self.per_stage) < self.layers
    presence_N = Presence(is_used_N, used) if used < 1 else None
    x_BLD, aside, _ = apply(
      *(self.name, x_BLD, *arguments), presence_N=presence_N, method='run_stack'
    )

    def finish():
      hidden_BLD = apply(x_BLD, method='finish')
      return token_loss(config, rest['head'], hidden_BLD, batch, totals)

    shapes = jax.eval_shape(finish)[1]
    nothing_yet = lambda: (jnp.zeros((), jnp.float32), telemetry.nothing(shapes))
    with runs(1 - 1 / self.stages, 1 / self.stages):
      loss, by_domain = lax.cond(stage == self.stages - 1, finish, nothing_yet)
    aside = aside._replace(telemetry=((before, by_domain), aside.telemetry))
    share, sums = objective(config, loss, aside, batch, totals, counts_nE)
    return (x_BLD, share), sums

  def of_one_stage(self) -> Config:
    """The config of a model with as many layers as a stage holds."""
    model, per_stage = self.config.model, self.per_stage
    dense = model.num_dense_layers if self.before else per_stage * (self.name == 'dense_blocks')
    layers = dense + per_stage * (self.name == 'moe_blocks')
    model = dataclasses.replace(model, num_layers=layers, num_dense_layers=dense)
    return dataclasses.replace(self.config, model=model)


def _swap(x, pairs):
  """What a stage receives from its partner; zeros if it has none."""
  return lax.ppermute(x, _AXIS, pairs) if pairs else jnp.zeros_like(x)


def _pad(x_N, size):
  return jnp.pad(x_N, [(0, size - x_N.shape[0])] + [(0, 0)] * (x_N.ndim - 1))
