"""Paired timings: what a MoE layer and a training step cost beside dense ones,
and where the time goes.
"""
