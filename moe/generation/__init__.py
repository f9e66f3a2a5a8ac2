"""Decoding: the choice of a token, weights and the model with its cache layer by layer, compiled
programs, a batch that is kept full. `moe.generate` is the door.

B rows of the batch, A rows of a prefill, L tokens of one, S positions of the cache, V vocabulary.
"""
