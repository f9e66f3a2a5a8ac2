"""Weights of others, in and out: Hugging Face checkpoints ↔ a run's folder → GGUF, streamed,
every tensor accounted for.

  layouts/        one file a layout: config.json ↔ Config, and its table; LAYOUTS lists them
  table.py        what a line of such a table means, for both directions
  hf_config.py    config.json, read key by key: none that changes the mathematics is passed over
  safetensors.py  the files' format
  parameters.py   a checkpoint's parameters written and read a piece at a time
  checkpoints.py  a run's checkpoint, as what is written out reads it
  planned.py      files written at any place in any order
  new_run.py      a run's folder made of weights alone
  from_hf.py  to_hf.py  tokenizers.py  to_gguf.py  gguf_tokenizers.py  outputs.py
  upcycle.py      a dense run into a MoE run; division.py, which units an expert gets; dense.py

N layers, E routed experts, D model width, F hidden width, V vocabulary.
"""
