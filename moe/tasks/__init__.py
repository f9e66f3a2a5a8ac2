"""Benchmarks of language models, through EleutherAI's lm-evaluation-harness (extra `evals`).

  program   launch.evaluate --tasks
  suite     tasks opened with their rows, and asked of a run
  harness   the run as the harness's model: log-probabilities, rolling ones, generation
  scoring   contexts and continuations → log-probabilities, in few compiled shapes
  loading, data, names  where tasks and their rows are
  sandbox, loaders  code that a model has written, run; what yaml/ calls
  paper     the paper's benchmarks and numbers
  report    the table, and a line in RUN/evaluations.jsonl

`suite` and what it calls import the harness when it is needed, and nothing else does.
"""
