"""Opens up a trained model: logits, losses, hidden states and routing of texts; changes, replays,
and tables in Parquet. `moe.run.load_run` returns a `Run`, whose methods do all of it.

  run       Run: every question, with the shapes of its answer
  texts     the input: texts or token ids → windows → batches
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
