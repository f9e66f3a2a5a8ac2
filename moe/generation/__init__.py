"""Decoding: sampling, weights and the model with its cache layer by layer, compiled programs, and
continuous batching. `moe.generate` is the entry point.

B rows of the batch, A rows of a prefill, L tokens of one, S positions of the cache, V vocabulary.
"""
