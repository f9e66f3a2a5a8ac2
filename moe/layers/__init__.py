"""Flax linen modules. Each returns its output and, where it routes, its statistics;
none keeps hidden state.

B batch, L sequence, S cached positions, T = B·L tokens, D model width, H heads, G key/value heads,
C head width, E routed experts, K routed experts a token, F hidden width.
"""
