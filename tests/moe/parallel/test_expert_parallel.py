"""Experts on different devices train as on one, for every transport and number of experts;
and the room that a round of the exchange has and needs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.parallel.experts import exchange
from moe.parallel.experts.capacity import Capacity, expected_fill
from moe.parallel.experts.rounds import Demand, window
from tests.moe.parallel import exchanged
from tests.moe.parallel.cases import GROUPS, check


@pytest.mark.parametrize('case', GROUPS['experts'])
def test_training(case):
  record = check('experts', case)
  if 'skewed' in case:
    assert max(record['rounds']) > 1  # or the case would not test what it says


@pytest.mark.parametrize('case', exchanged.CASES)
def test_padding_and_choices_of_none_go_nowhere(case):
  """Padding is NaN, so it would show if it went anywhere. Outputs and gradients equal those of
  computing every expert for the real tokens alone.
  """
  record = exchanged.measure(exchanged.CASES[case])
  assert record['distance'][0] <= 1e-6, record
  assert record['in_padding'] == 0


def count_exchange(case):
  """Returns (rounds, fullest device's shares of the room for tokens and for assignments, device
  load), counted in loops over the real tokens.
  """
  given, own = exchanged.inputs(case), exchanged.SEQUENCES * exchanged.LENGTH // exchanged.DEVICES
  all_tokens, here = case.transport == 'all_gather', -(-case.experts // case.devices)
  capacity = Capacity.of(
    own, (1,) * case.experts, exchanged.K, case.devices, case.buffer, all_tokens
  )
  experts_TK, is_token_T = given.experts_BLK.reshape(-1, exchanged.K), given.is_token_BL.reshape(-1)
  received = np.zeros((exchanged.DEVICES, 2))  # tokens and assignments in the first round
  load, rounds = np.zeros(exchanged.DEVICES), 1
  for sender, p in np.ndindex(exchanged.DEVICES, case.devices):
    receiver = sender // case.devices * case.devices + p
    before = tokens = assignments = 0  # earlier rounds, and what the current one holds
    for t in range(sender * own, (sender + 1) * own):
      asked = sum(int(e) // here == p for e in experts_TK[t] if e < case.experts)
      if not is_token_T[t] or not asked:
        continue
      if tokens == capacity.tokens or assignments + asked > capacity.assignments:
        before, tokens, assignments = before + 1, 0, 0
      tokens, assignments = tokens + 1, assignments + asked
      received[receiver] += (1, asked) if before == 0 else 0
      load[receiver] += asked
    rounds = max(rounds, before + 1)
  shares = received.max(axis=0) / case.devices / np.array(capacity)
  return rounds, shares, load.max() / load.mean() if load.any() else 0


@pytest.mark.parametrize('name', exchanged.CASES)
def test_telemetry_is_a_count_of_real_tokens(name):
  case, record = exchanged.CASES[name], exchanged.measure(exchanged.CASES[name])
  rounds, (tokens, assignments), load = count_exchange(case)
  assert record['rounds'] == rounds
  assert record['buffer_share'] == pytest.approx(max(tokens, assignments), rel=1e-6)
  assert record['device_load'] == pytest.approx(load, rel=1e-6)
  if name.startswith('a device often'):  # or the case would not test what it says
    assert rounds > 1 and assignments > tokens
  else:
    assert rounds == 1
  if name == 'one expert of each device often':
    assert tokens > assignments


def choose(tokens, experts, per_token, seed, weights=None):
  generator = np.random.default_rng(seed)
  weights = np.ones(experts) if weights is None else weights
  one = lambda: generator.choice(experts, per_token, replace=False, p=weights / weights.sum())
  return np.stack([one() for _ in range(tokens)]).astype(np.int32)


def rounds_needed(experts_TK, experts, devices, capacity):
  demand = Demand.of(jnp.asarray(experts_TK), devices, -(-experts // devices))
  start_P, rounds = jnp.zeros(devices, jnp.int32), 0
  while (start_P < demand.total_P).any():
    start_P += window(demand, start_P, capacity).sum(axis=0)
    rounds += 1
  return rounds


@pytest.mark.parametrize(('experts', 'per_token'), [(4, 2), (8, 2), (9, 2), (63, 6), (64, 6)])
def test_balanced_routing_takes_one_round_of_the_default_buffer(experts, per_token):
  tokens, devices = 1008, 8  # a multiple of every number of experts but 64
  capacity = Capacity.of(tokens, (1,) * experts, per_token, devices, 1.5, all_tokens=False)
  exactly_TK = np.arange(tokens * per_token, dtype=np.int32).reshape(tokens, per_token) % experts
  for experts_TK in (exactly_TK, *(choose(tokens, experts, per_token, seed) for seed in range(5))):
    assert rounds_needed(experts_TK, experts, devices, capacity) == 1


@pytest.mark.parametrize(
  ('experts', 'per_token', 'tokens', 'assignments'),
  [
    (4, 2, 1 / 2, 2 / 4),  # one expert each on four of the devices: half of the tokens choose it
    (8, 2, 1 / 4, 2 / 8),
    (9, 2, 15 / 36, 2 * 2 / 9),  # the fullest holds two: 15 of the 36 pairs have one of them
    (63, 6, 0.573, 6 * 8 / 63),
    (64, 6, 4.54 / 8, 6 / 8),  # a token needs 4.54 of 8 devices on average
  ],
)
def test_room_is_in_proportion_to_what_the_fullest_device_expects(
  experts, per_token, tokens, assignments
):
  """Room follows neither the worst case nor a mean that counts devices without experts. There are
  10 000 tokens.
  """
  capacity = Capacity.of(10_000, (1,) * experts, per_token, 8, 1.5, all_tokens=False)
  assert capacity.tokens == pytest.approx(1.5 * tokens * 10_000, rel=0.001)
  assert capacity.assignments == pytest.approx(1.5 * assignments * 10_000, rel=0.001)


@pytest.mark.parametrize(
  ('tokens', 'experts', 'per_token', 'devices', 'buffer', 'fill'),
  [
    # 8 experts on 4 devices, 2 a token: P(it needs a given device) = 1 − C(6, 2) / C(8, 2) = 13/28.
    (28, 8, 2, 4, 1.5, 13 / 20),  # 1.5 · 13 rows, rounded up
    (28, 8, 2, 4, 2.0, 13 / 26),
    (28, 8, 2, 4, 3.0, 13 / 28),  # no more than all tokens
    # Devices hold 2, 2, 2 and 1 experts: (3 · 11/21 + 6/21) / 4 of the tokens need one on average.
    # There is room for all tokens, because 2 · 11/21 exceeds 1.
    (28, 7, 2, 4, 2.0, 13 / 28),
    (12, 4, 2, 2, 1.5, 10 / 12),  # 1 − C(2, 2) / C(4, 2) = 5/6, and 1.5 times that exceeds all
    (12, 4, 2, 1, 1.5, 1.0),
    # The 16B. The other three would need room for more than all tokens:
    # 1.5 · (1 − C(112, 12) / C(128, 12)) and so on exceed 1.
    (2**20, 64, 6, 8, 1.5, 0.6667),
    (2**20, 128, 12, 8, 1.5, 0.8138),
    (2**20, 64, 6, 4, 1.5, 0.8363),
    (2**20, 128, 12, 4, 1.5, 0.9737),
  ],
)
def test_how_full_a_round_is_when_routing_is_balanced(
  tokens, experts, per_token, devices, buffer, fill
):
  found = expected_fill(tokens, (1,) * experts, per_token, devices, buffer)
  assert found == pytest.approx(fill, abs=1e-4)


def test_room_where_experts_differ_in_width():
  """Experts of 3, 1 and 1 units on 3 devices: the first device holds 2 units of the first expert,
  the second its last unit and the second expert, the third the third expert. With 2 experts a
  token, 2/3 of the tokens need the first and the third device, all need the second.
  """
  capacity = Capacity.of(900, (3, 1, 1), 2, 3, 1.0, all_tokens=False)
  assert capacity == Capacity(tokens=900, assignments=900 * 2 * 2 // 3)
  assert expected_fill(900, (3, 1, 1), 2, 3, 1.0) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
  # A token's choices have 5 units, more than the 3 that a device holds.
  assert Capacity.of(4, (4, 1), 2, 2, 1.0, all_tokens=False).assignments == 4 * 3


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('packed', [True, False])
def test_rounds_send_every_token_once_to_each_of_its_devices(seed, packed):
  """Compares with a loop over tokens. Choices are lopsided, so that several rounds are needed."""
  tokens, experts, per_token, devices = 40, 12, 3, 4
  experts_TK = choose(tokens, experts, per_token, seed, weights=np.arange(1, experts + 1) ** 2.0)
  needed = {(t, e // 3) for t in range(tokens) for e in experts_TK[t]}
  capacity = Capacity.of(tokens, (1,) * experts, per_token, devices, 1.0, all_tokens=not packed)
  demand = Demand.of(jnp.asarray(experts_TK), devices, experts // devices)
  start_P, sent, rounds = jnp.zeros(devices, jnp.int32), set(), 0
  while (start_P < demand.total_P).any():
    window_TP = window(demand, start_P, capacity)
    moves, sent_P = jax.device_get(exchange._slots(demand.device_TK, window_TP, capacity, packed))
    here = {
      (int(t), slot // capacity.tokens) for slot, t in enumerate(moves.source_A) if t < tokens
    }
    assert here == set(zip(*map(np.ndarray.tolist, np.nonzero(np.asarray(window_TP)))))
    assert not here & sent
    for p in range(devices):
      assigned = sum(e // 3 == p for t, q in here if q == p for e in experts_TK[t])
      assert sum(q == p for _, q in here) == sent_P[p] <= capacity.tokens
      assert assigned <= capacity.assignments
    # A token's sum collects each of its own slots once.
    for t in range(tokens):
      slots = [int(s) for s in moves.slot_TK[t] if s < moves.source_A.shape[0]]
      assert len(slots) == len(set(slots)) and all(moves.source_A[s] == t for s in slots)
      assert len(slots) == sum(u == t for u, _ in here)
    sent |= here
    start_P += window_TP.sum(axis=0)
    rounds += 1
  assert sent == needed
  assert rounds > 1
