"""The router protocol: all that other modules may ask of a router. They know no router by name.

B sequences of L tokens, D model width, E routed experts, K chosen by a token, N MoE layers.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import Config
from moe.metrics.telemetry import Telemetry
from moe.ops.router import Routing, RoutingStats, force_balance
from moe.ops.router.reference import count_choices


class Probe(NamedTuple):
  """What an analysis asks of every layer of a model. Training asks nothing."""

  # How many of its best experts each token is denied: it gets the K best of the rest.
  masked: int = 0
  choices: bool = False  # return every token's experts and gates
  affinities: bool = False  # and its affinities over all experts
  hidden: bool = False  # return the residual stream after every block
  keys_values: bool = False  # return every token's keys and values, in place of the cache


class Forced(NamedTuple):
  """Choices that are made for the router. A stack of N layers has a leading axis N."""

  # int32. Where the first is −1 the token keeps the router's own experts and gates.
  experts_BLK: jax.Array
  # float32; None: made from the router's own affinities to these experts.
  gates_BLK: jax.Array | None = None


class Router(nn.Module):
  """Chooses every token's experts and their gates. A subclass implements `choose`, and overrides
  the rest where the default does not fit.
  """

  config: Config
  probe: Probe = Probe()

  # What evaluation may change in a trained model's routing: fields of
  # `moe.analysis.Intervention`.
  # 'masked_share' needs a `choose` that ranks all experts.
  interventions: ClassVar[tuple[str, ...]] = ('experts_per_token', 'without_shared')

  def __call__(self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array) -> Routing:
    """Returns float32 gates_BLK, int32 experts_BLK, best first, and sums over each sequence's real
    tokens.

    u_BLD: in the compute type. is_token_BL: False for padding, which is routed but not counted.
    """
    return self.route(u_BLD, token_ids_BL, is_token_BL)[0]

  def route(
    self,
    u_BLD: jax.Array,
    token_ids_BL: jax.Array,
    is_token_BL: jax.Array,
    forced: Forced | None = None,
  ) -> tuple[Routing, jax.Array | None]:
    """The routing, as `__call__` returns it but with some tokens' choices `forced`, and
    affinities_BLE if the probe asks for them, else None.
    """
    moe, masked = self.config.moe, self.probe.masked
    k, ranks_all = moe.experts_per_token, forced is not None or self.probe.affinities
    ranked = moe.num_experts if ranks_all else k + masked
    affinities_BLR, ranks_BLR, stats = self.choose(u_BLD, token_ids_BL, is_token_BL, ranked)
    own = slice(masked, masked + k)
    affinities_BLK, experts_BLK = affinities_BLR[..., own], ranks_BLR[..., own]
    affinities_BLE = None
    if ranks_all:
      # All experts are ranked, so sorting by their ids puts each in its place.
      affinities_BLE = jnp.take_along_axis(affinities_BLR, jnp.argsort(ranks_BLR, axis=-1), axis=-1)
    if forced is not None:
      is_forced_BL1 = forced.experts_BLK[..., :1] >= 0
      experts_BLK = jnp.where(is_forced_BL1, forced.experts_BLK, experts_BLK)
      affinities_BLK = jnp.take_along_axis(affinities_BLE, experts_BLK, axis=-1)
    gates_are_forced = forced is not None and forced.gates_BLK is not None
    is_taken_BLK = None
    if moe.gate_mass < 1:
      is_taken_BLK = holds_mass(affinities_BLK, moe.gate_mass)
      if gates_are_forced:
        is_taken_BLK = jnp.where(is_forced_BL1, forced.gates_BLK > 0, is_taken_BLK)
      affinities_BLK = jnp.where(is_taken_BLK, affinities_BLK, 0)
    gates_BLK = self.gates(affinities_BLK)
    if gates_are_forced:
      gates_BLK = jnp.where(is_forced_BL1, forced.gates_BLK, gates_BLK)
    if ranked > k or is_taken_BLK is not None:
      counted_BLK = (
        experts_BLK if is_taken_BLK is None else jnp.where(is_taken_BLK, experts_BLK, -1)
      )
      counts_BE = count_choices(counted_BLK, is_token_BL, moe.num_experts)
      stats = stats._replace(counts_BE=counts_BE)
    routing = Routing(gates_BLK, experts_BLK, stats)
    if self.config.ops.force_balanced_routing:
      routing = force_balance(routing, is_token_BL, moe.num_experts)
    return routing, affinities_BLE if self.probe.affinities else None

  def choose(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array, k: int
  ) -> Routing:
    """Each token's k best experts, best first, with their affinities in place of gates, and the
    sums. k is at most E, and affinities do not depend on it.
    """
    raise NotImplementedError(f'{type(self).__name__} does not implement choose')

  def gates(self, affinities_BLK: jax.Array) -> jax.Array:
    """The gates of a token's K experts from their affinities, which are 0 for experts that it does
    not take (`moe.gate_mass`). Gates are the affinities themselves (Eq. 10), with
    `moe.normalize_gates` divided by their sum; then multiplied by `moe.gate_scale`.
    """
    moe, gates_BLK = self.config.moe, affinities_BLK
    if moe.normalize_gates:
      gates_BLK /= jnp.maximum(gates_BLK.sum(axis=-1, keepdims=True), 1e-30)
    return gates_BLK if moe.gate_scale == 1 else gates_BLK * moe.gate_scale

  def telemetry(self, stats: RoutingStats) -> Telemetry:
    """The readings that `after_step` needs beside the counts."""
    del stats
    return {}

  @classmethod
  def num_params(cls, config: Config) -> int:
    """Parameters of one layer's router. Each takes part in one multiplication per token."""
    del config
    return 0

  @classmethod
  def after_step(cls, params: dict, measured: dict[str, jax.Array], config: Config) -> dict:
    """The routers' parameters, updated by what a step's tokens chose: balancing without a gradient
    happens here.

    Args:
      params: those of all N layers' routers, {name: (N, …)}, as the optimizer left them.
      measured: over the whole batch, int32 expert_counts_NE, NAME_N of `telemetry`, and the
        step's other metrics.
    """
    del measured, config
    return params


def holds_mass(affinities_BLK: jax.Array, share: float) -> jax.Array:
  """bool is_taken_BLK: the fewest of a token's affinities, given in any order, that hold this share
  of their sum; at least one. Of equal affinities the earlier is taken first.
  """
  places = jnp.arange(affinities_BLK.shape[-1])
  first, second = affinities_BLK[..., :, None], affinities_BLK[..., None, :]
  earlier_KK = places[None, :] < places[:, None]
  # The mass taken before each affinity. Comparing K² pairs is cheap, and a sort would have to be
  # undone.
  comes_before = (second > first) | ((second == first) & earlier_KK[None, None])
  before_BLK = jnp.where(comes_before, second, 0).sum(axis=-1)
  is_best_BLK = ~comes_before.any(axis=-1)  # taken even where all affinities are 0
  # Negated, so that an affinity that is not finite is taken, and shows.
  return is_best_BLK | ~(before_BLK >= share * affinities_BLK.sum(axis=-1, keepdims=True))


def sums_of(
  logits_BLE: jax.Array, shares_BLE: jax.Array, experts_BLK: jax.Array, is_token_BL: jax.Array
) -> RoutingStats:
  """The sums that balance terms and metrics need, for a router whose choice does not compute them
  already.

  shares_BLE: float32 affinities that add up to one for each token, P of Eq. 14.
  """
  entropies_BL = -(shares_BLE * jnp.log(jnp.maximum(shares_BLE, 1e-30))).sum(axis=-1)
  z_BL = jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1))
  return RoutingStats(
    counts_BE=count_choices(experts_BLK, is_token_BL, logits_BLE.shape[-1]),
    probability_sums_BE=jnp.where(is_token_BL[..., None], shares_BLE, 0).sum(axis=1),
    entropy_sums_B=jnp.where(is_token_BL, entropies_BL, 0).sum(axis=1),
    z_sums_B=jnp.where(is_token_BL, z_BL, 0).sum(axis=1),
  )
