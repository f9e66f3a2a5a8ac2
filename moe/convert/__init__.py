"""Weights of others, in and out: Hugging Face checkpoints ↔ a run's folder, streamed,
every tensor accounted for.

  layouts/        one file a layout: config.json ↔ Config, and its table; LAYOUTS lists them
  table.py        what a line of such a table means, for both directions
  hf_config.py    config.json, read key by key: none that changes the mathematics is passed over
  safetensors.py  the files' format
  parameters.py   a checkpoint's parameters written and read a piece at a time
  from_hf.py  to_hf.py  tokenizers.py  outputs.py

N layers, E routed experts, D model width, F hidden width, V vocabulary.
"""
