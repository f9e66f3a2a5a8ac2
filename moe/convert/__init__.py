"""Import and export of weights: Hugging Face checkpoints ↔ a run's folder → GGUF. They are
streamed, and every tensor is accounted for.

  layouts/        one file per layout: config.json ↔ Config, and a table; LAYOUTS lists them
  table.py        what a line of a table means, for both directions
  hf_config.py    reads config.json key by key and ignores none that changes the mathematics
  safetensors.py  the file format
  parameters.py   writes and reads a checkpoint's parameters a piece at a time
  checkpoints.py  reads a run's checkpoint for export
  planned.py      writes files at any place in any order
  new_run.py      makes a run's folder from weights alone
  from_hf.py  to_hf.py  tokenizers.py  to_gguf.py  gguf_tokenizers.py  outputs.py
  upcycle.py      makes a MoE run from a dense one; division.py assigns units to experts; dense.py

N layers, E routed experts, D model width, F hidden width, V vocabulary.
"""
