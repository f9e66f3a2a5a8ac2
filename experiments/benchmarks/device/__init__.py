"""Measures the accelerator that JAX sees: every op in every implementation that runs there beside
the reference, the layer, a training step and decoding.

supervise  one process asks, another computes: a hang or a crash there is a record, not the end
worker     the process that computes, one case at a time
cases      what is measured, in order of importance, each part with its seconds
sizes      shapes: those of the 2B and the 16B, or small ones for a CPU
ops        an op beside the reference; drawn: the ops and their random inputs
layer      a MoE layer beside others
models     a training step, decoding
kept       what neighbouring cases share
clock      compiling and timing on a device
records    one measurement as JSON
report     all of them as a table for docs/kernels.md

T tokens, D width, F expert width, E experts, K a token, R = T·K rows.
"""
