"""The paper's equations (arXiv 2401.06066) as NumPy float64 loops over tokens:
slow, plain, independent of moe/.

T tokens, D model width, E routed experts, K routed experts a token, F expert width,
V vocabulary, B sequences of L tokens, H heads, G key/value heads, C head width. Gradients are
derived by hand and written out token by token; tests/test_oracles.py compares them with
differences of the forward functions.
"""

import math
from typing import NamedTuple

import numpy as np


class Expert(NamedTuple):
  """One SwiGLU FFN."""

  gate_DF: np.ndarray
  up_DF: np.ndarray
  down_FD: np.ndarray


class MoEWeights(NamedTuple):
  """A MoE layer: centroids e_i as columns, routed experts, shared experts one by one, and the
  gate that weighs the shared experts together (None: weight 1).
  """

  centroids_DE: np.ndarray
  routed: list[Expert]
  shared: list[Expert]
  shared_gate_D: np.ndarray | None = None


def exact(x) -> np.ndarray:
  """A float64 copy."""
  return np.array(x, np.float64)


def sigmoid(x: float) -> float:
  return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softmax(logits_V) -> np.ndarray:
  largest = max(logits_V)
  powers = [math.exp(x - largest) for x in logits_V]
  return np.array([p / sum(powers) for p in powers])


def log_sum_exp(logits_V) -> float:
  largest = max(logits_V)
  return largest + math.log(sum(math.exp(x - largest) for x in logits_V))


# Routing (Eq. 7, 8, 10, 11)


def largest(values, k: int) -> list[int]:
  """Indices of the k largest, largest first; the lower index first among equals."""
  return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def route(u_D, centroids_DE, k: int, mass: float = 1.0) -> tuple[np.ndarray, list[int], np.ndarray]:
  """(gates of the k chosen experts, their indices, affinities to all experts). Gates are raw
  affinities, not renormalised; those beyond the fewest that hold a share `mass` of their sum are 0.
  """
  logits = [
    sum(u * e for u, e in zip(u_D, centroids_DE[:, i])) for i in range(centroids_DE.shape[1])
  ]
  affinities = softmax(logits)  # Eq. 8, 11
  chosen = largest(affinities, k)  # Eq. 7, 10
  gates = [affinities[i] for i in chosen]
  held = sum(gates)
  for rank in range(k - 1, 0, -1):
    if sum(gates[:rank]) >= mass * held:
      gates[rank] = 0.0
  return np.array(gates), chosen, affinities


def chosen_with_bias(
  affinities_E, bias_E, k: int, groups: int = 1, limit: int = 0
) -> tuple[list[int], float]:
  """(the k experts of largest affinity + bias, best first; the cutoff halfway between the last of
  them and the next). Only the `limit` groups of consecutive experts with the best single expert
  take part; 0 is all groups.
  """
  ranked = [s + b for s, b in zip(affinities_E, bias_E, strict=True)]
  size = len(ranked) // groups
  best = largest([max(ranked[g * size : (g + 1) * size]) for g in range(groups)], limit or groups)
  allowed = [e for e in range(len(ranked)) if e // size in best]
  order = sorted(allowed, key=lambda e: (-ranked[e], e))
  last, following = ranked[order[k - 1]], ranked[order[min(k, len(order) - 1)]]
  return order[:k], (last + following) / 2 if k < len(order) else last


def loss_free_step(bias_E, counts_E, rate: float) -> np.ndarray:
  """The bias after one step of Algorithm 1 of arXiv 2408.15664, then centred."""
  mean = sum(counts_E) / len(counts_E)
  moved = [
    b + rate * (int(c < mean) - int(c > mean)) for b, c in zip(bias_E, counts_E, strict=True)
  ]
  return np.array(moved) - sum(moved) / len(moved)


def quantile_thresholds(excess_TE, share: float) -> np.ndarray:
  """For every expert, the threshold that a share `share` of its tokens' values exceed."""
  thresholds = []
  for values in np.transpose(excess_TE):
    ordered = sorted(values, reverse=True)
    wanted = share * len(ordered)
    below = min(int(wanted), len(ordered) - 1)
    thresholds.append((ordered[max(below - 1, 0)] + ordered[below]) / 2)
  return np.array(thresholds)


# FFN


def ffn(x_D, expert: Expert) -> np.ndarray:
  """down(silu(gate x) · up x)."""
  gate_F, up_F = expert.gate_DF.T @ x_D, expert.up_DF.T @ x_D
  hidden_F = np.array([g * sigmoid(g) * u for g, u in zip(gate_F, up_F)])
  return expert.down_FD.T @ hidden_F


def ffn_gradients(x_D, expert: Expert, dy_D) -> tuple[np.ndarray, Expert]:
  """Gradients of dy · ffn(x) with respect to x and to the three matrices."""
  gate_F, up_F = expert.gate_DF.T @ x_D, expert.up_DF.T @ x_D
  d_hidden_F = expert.down_FD @ dy_D
  hidden_F, d_gate_F, d_up_F = (np.zeros(len(gate_F)) for _ in range(3))
  for f, (g, u) in enumerate(zip(gate_F, up_F)):
    s = sigmoid(g)
    hidden_F[f] = g * s * u
    d_gate_F[f] = d_hidden_F[f] * u * (s + g * s * (1 - s))  # d(g σ(g))/dg = σ + g σ (1 − σ)
    d_up_F[f] = d_hidden_F[f] * g * s
  dx_D = expert.gate_DF @ d_gate_F + expert.up_DF @ d_up_F
  return dx_D, Expert(np.outer(x_D, d_gate_F), np.outer(x_D, d_up_F), np.outer(hidden_F, dy_D))


def _zeros_like(expert: Expert) -> Expert:
  return Expert(*(np.zeros_like(w) for w in expert))


def _add(total: Expert, more: Expert, scale: float = 1.0) -> None:
  for t, m in zip(total, more):
    t += scale * m


# The routed experts given their gates, and the whole layer (Eq. 9 without the residual)


def routed_ffn(x_TD, gates_TK, experts_TK, experts: list[Expert]) -> np.ndarray:
  y_TD = np.zeros_like(x_TD)
  for t, x_D in enumerate(x_TD):
    for gate, i in zip(gates_TK[t], experts_TK[t]):
      y_TD[t] += gate * ffn(x_D, experts[i])
  return y_TD


def routed_ffn_gradients(x_TD, gates_TK, experts_TK, experts: list[Expert], dy_TD):
  """Gradients of Σ dy · routed_ffn with respect to x_TD, gates_TK and each expert."""
  dx_TD, d_gates_TK = np.zeros_like(x_TD), np.zeros_like(gates_TK)
  d_experts = [_zeros_like(e) for e in experts]
  for t, x_D in enumerate(x_TD):
    for k, i in enumerate(experts_TK[t]):
      dx_D, d_expert = ffn_gradients(x_D, experts[i], dy_TD[t])
      dx_TD[t] += gates_TK[t, k] * dx_D
      _add(d_experts[i], d_expert, gates_TK[t, k])
      d_gates_TK[t, k] = dy_TD[t] @ ffn(x_D, experts[i])
  return dx_TD, d_gates_TK, d_experts


def moe_layer(u_TD, weights: MoEWeights, k: int, mass: float = 1.0) -> np.ndarray:
  y_TD = np.zeros_like(u_TD)
  for t, u_D in enumerate(u_TD):
    for shared in weights.shared:
      y_TD[t] += _shared_gate(u_D, weights) * ffn(u_D, shared)
    gates, chosen, _ = route(u_D, weights.centroids_DE, k, mass)
    for gate, i in zip(gates, chosen):
      y_TD[t] += gate * ffn(u_D, weights.routed[i])
  return y_TD


def _shared_gate(u_D, weights: MoEWeights) -> float:
  return 1.0 if weights.shared_gate_D is None else sigmoid(float(u_D @ weights.shared_gate_D))


def moe_layer_gradients(
  u_TD, weights: MoEWeights, k: int, dy_TD, mass: float = 1.0
) -> tuple[np.ndarray, MoEWeights]:
  """Gradients of Σ dy · moe_layer with respect to u_TD and every weight; the centroids get theirs
  through the gates.
  """
  du_TD, d_centroids_DE = np.zeros_like(u_TD), np.zeros_like(weights.centroids_DE)
  d_shared = [_zeros_like(e) for e in weights.shared]
  d_routed = [_zeros_like(e) for e in weights.routed]
  d_shared_gate_D = None if weights.shared_gate_D is None else np.zeros_like(u_TD[0])
  for t, u_D in enumerate(u_TD):
    open_by = _shared_gate(u_D, weights)
    for shared, d_expert in zip(weights.shared, d_shared):
      du_D, d_weights = ffn_gradients(u_D, shared, dy_TD[t])
      du_TD[t] += open_by * du_D
      _add(d_expert, d_weights, open_by)
      if d_shared_gate_D is not None:
        d_logit = dy_TD[t] @ ffn(u_D, shared) * open_by * (1 - open_by)
        du_TD[t] += d_logit * weights.shared_gate_D
        d_shared_gate_D += d_logit * u_D
    gates, chosen, affinities = route(u_D, weights.centroids_DE, k, mass)
    for gate, i in zip(gates, chosen):
      du_D, d_weights = ffn_gradients(u_D, weights.routed[i], dy_TD[t])
      du_TD[t] += gate * du_D
      _add(d_routed[i], d_weights, gate)
      d_gate = dy_TD[t] @ ffn(u_D, weights.routed[i])
      for j, s in enumerate(affinities):
        d_logit = d_gate * gate * ((i == j) - s)  # ∂s_i/∂logit_j
        du_TD[t] += d_logit * weights.centroids_DE[:, j]
        d_centroids_DE[:, j] += d_logit * u_D
  return du_TD, MoEWeights(d_centroids_DE, d_routed, d_shared, d_shared_gate_D)


# Balance losses (Eq. 12–17) and z-loss, of one layer


def load_and_probability(affinities, chosen, num_experts: int) -> tuple[list[float], list[float]]:
  """f_i (Eq. 13) and P_i (Eq. 14) over a list of tokens,
  each with its affinities and chosen experts.
  """
  tokens, k = len(affinities), len(chosen[0])
  load, probability = [0.0] * num_experts, [0.0] * num_experts
  for s, experts in zip(affinities, chosen):
    for i in range(num_experts):
      load[i] += (i in experts) * num_experts / (k * tokens)
      probability[i] += s[i] / tokens
  return load, probability


def expert_balance(affinities, chosen, num_experts: int) -> float:
  """Σ f_i P_i: Eq. 12 without α1."""
  return sum(f * p for f, p in zip(*load_and_probability(affinities, chosen, num_experts)))


def device_balance(affinities, chosen, num_experts: int, groups: int) -> float:
  """Σ f'_i P'_i: Eq. 15 without α2. A group is a run of consecutive experts."""
  load, probability = load_and_probability(affinities, chosen, num_experts)
  size, total = num_experts // groups, 0.0
  for g in range(groups):
    members = range(g * size, (g + 1) * size)
    mean_load = sum(load[j] for j in members) / size  # Eq. 16
    total += mean_load * sum(probability[j] for j in members)  # Eq. 17
  return total


def over_scope(loss, affinities_BLE, experts_BLK, is_token_BL, scope: str) -> float:
  """`loss(affinities, chosen)` over all real tokens (`scope` 'batch'), or its mean over the
  sequences that have any.
  """
  rows = [
    (
      [affinities_BLE[b, t] for t in np.flatnonzero(row)],
      [list(experts_BLK[b, t]) for t in np.flatnonzero(row)],
    )
    for b, row in enumerate(is_token_BL)
    if row.any()
  ]
  if scope == 'batch':
    rows = [tuple([item for part in parts for item in part] for parts in zip(*rows))]
  return sum(loss(affinities, chosen) for affinities, chosen in rows) / len(rows)


def router_z(logits_BLE, is_token_BL) -> float:
  """Mean over real tokens of logsumexp²."""
  tokens = [log_sum_exp(logits_BLE[b, t]) ** 2 for b, t in zip(*np.nonzero(is_token_BL))]
  return sum(tokens) / len(tokens)


# The rest of the Transformer


def rms_norm(x_D, scale_D, eps: float) -> np.ndarray:
  mean_square = sum(x * x for x in x_D) / len(x_D)
  return np.array([x / math.sqrt(mean_square + eps) * s for x, s in zip(x_D, scale_D)])


def rope(x_C, position: int, base: float) -> np.ndarray:
  """x_C with its pairs (c, c + C/2), as complex numbers, turned by position · base^(−2c/C)."""
  width = len(x_C)
  turned_C = np.zeros(width)
  for c in range(width // 2):
    angle = position * base ** (-2 * c / width)
    number = complex(x_C[c], x_C[c + width // 2]) * complex(math.cos(angle), math.sin(angle))
    turned_C[c], turned_C[c + width // 2] = number.real, number.imag
  return turned_C


def attention(
  x_LD, positions_L, segments_L, query, key, value, out, heads: int, kv_heads: int, base: float
):
  """Causal attention within segments; head h reads key/value head h // (H / G)."""
  length, width = len(x_LD), query.shape[1] // heads
  split = lambda x_D, w, count: (w.T @ x_D).reshape(count, width)
  queries, keys, values = (
    [split(x_D, w, n) for x_D in x_LD]
    for w, n in ((query, heads), (key, kv_heads), (value, kv_heads))
  )
  y_LD = np.zeros((length, out.shape[1]))
  for i in range(length):
    seen = [j for j in range(i + 1) if segments_L[j] == segments_L[i]]
    attended = []
    for h in range(heads):
      g = h // (heads // kv_heads)
      turned = rope(queries[i][h], positions_L[i], base)
      scores = [turned @ rope(keys[j][g], positions_L[j], base) / math.sqrt(width) for j in seen]
      attended.append(sum(p * values[j][g] for p, j in zip(softmax(scores), seen)))
    y_LD[i] = out.T @ np.concatenate(attended)
  return y_LD


# Loss, optimizer, sampling


def cross_entropy(hidden_TD, head_DV, targets_T, weights_T) -> tuple[float, np.ndarray, np.ndarray]:
  """Σ weight · −log p(target), and its gradients with respect to hidden and head."""
  loss, d_hidden_TD, d_head_DV = 0.0, np.zeros_like(hidden_TD), np.zeros_like(head_DV)
  for t, (h_D, target, weight) in enumerate(zip(hidden_TD, targets_T, weights_T)):
    probabilities = softmax(head_DV.T @ h_D)
    loss -= weight * math.log(probabilities[target])
    d_logits = weight * probabilities
    d_logits[target] -= weight
    d_hidden_TD[t] = head_DV @ d_logits
    d_head_DV += np.outer(h_D, d_logits)
  return loss, d_hidden_TD, d_head_DV


def adamw(p: float, gradients, rates, b1: float, b2: float, eps: float, decay: float) -> float:
  """One parameter after a step with each of its gradients.
  Weight decay is decoupled and scaled by the rate.
  """
  m = v = 0.0
  for step, (g, rate) in enumerate(zip(gradients, rates), start=1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    p -= rate * (m / (1 - b1**step) / (math.sqrt(v / (1 - b2**step)) + eps) + decay * p)
  return p


def sampling_probabilities(logits_V, temperature: float, top_k: int, top_p: float) -> np.ndarray:
  """The probability of each token: logits / temperature, cut to the k most likely tokens,
  then to the fewest of these that reach top_p.
  """
  probabilities = softmax([x / temperature for x in logits_V])
  kept = largest(probabilities, top_k or len(probabilities))
  total, nucleus, reached = sum(probabilities[i] for i in kept), [], 0.0
  for i in kept:
    if reached >= top_p:
      break
    nucleus.append(i)
    reached += probabilities[i] / total
  result = np.zeros(len(probabilities))
  for i in nucleus:
    result[i] = probabilities[i] / sum(probabilities[j] for j in nucleus)
  return result
