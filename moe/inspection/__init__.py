"""A trained model opened up: logits, losses, hidden states and routing of texts; changed, replayed,
and written to Parquet. `moe.run.load_run` gives the `Run` that all of it is asked of.

  run       Run: every question, with the shapes of its answer
  texts     what is asked about: texts or token ids → windows → batches
  programs  the compiled forward pass, and its results cut back into texts
  options   with_config, intervene: what may be changed in a trained model
  replay    choices from elsewhere
  table     routing as pyarrow, one row a token and layer; streamed to Parquet

B rows of a batch, L tokens, N layers, D model width, E routed experts, K chosen by a token,
V vocabulary.
"""

from moe.inspection.programs import TextRouting, TokenLoss
from moe.inspection.replay import Replay
from moe.inspection.run import Run

__all__ = ['Replay', 'Run', 'TextRouting', 'TokenLoss']
