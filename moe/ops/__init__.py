"""Arrays in, arrays out: no Flax, no mesh, no config.

B batch, L sequence, T = B·L tokens, D model width, E routed experts, K routed experts a token,
F expert hidden width, R = T·K dispatched rows. Rows lie sorted by expert.
"""
