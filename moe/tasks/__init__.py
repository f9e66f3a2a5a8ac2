"""Benchmarks of language models, through EleutherAI's lm-evaluation-harness (extra `evals`).

  program   launch.evaluate --tasks
  suite     opens tasks with their rows and scores a run on them
  harness   the run as the harness's model: log-probabilities, rolling ones, generation
  scoring   contexts and continuations → log-probabilities, in few compiled shapes
  loading, data, names  where tasks and their rows are
  sandbox, loaders  runs code that a model has written; the functions that yaml/ calls
  paper     the paper's benchmarks and numbers
  report    the table, and a line in RUN/evaluations.jsonl

Only `suite` and what it calls import the harness, and only when it is needed.
"""
