"""A run from start to finish: data, tokenizer, training, evaluation, a sample and a report.
`make quickstart` calls it.

  python -m launch.quickstart --config=experiments/quickstart.py --workdir=DIR
    [--config.train.num_steps=… …]

Run it again and it goes on where it stopped, or reports again.
"""

import shlex
import time
from pathlib import Path

from absl import flags

from moe import cli, host_memory

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
PROMPT = flags.DEFINE_string('prompt', 'def read_', 'Text that the sample continues.')

_REPORT = """
{scores}
{experts}
checkpoint     {checkpoint}
               from moe.run import load_run; run = load_run({workdir!r})
curves         {metrics}, or: pip install tensorboard; tensorboard --logdir {quoted}
this run       {seconds:.0f} s from start to report

sample, at temperature 0.8:
{sample}
"""


def main(_):
  began = time.perf_counter()
  config = cli.config(CONFIG)
  from moe import evaluate
  from moe.data.prepare import prepare
  from moe.generate import Sampling, generate
  from moe.run import data_directory, load_run
  from moe.train import train

  workdir = Path(WORKDIR.value)
  outcome = train(config, workdir)
  if not outcome.finished:
    return outcome.exit_code or 1
  run = load_run(workdir)
  data = prepare(config, data_directory(config, workdir))
  evaluation = evaluate.Evaluator(config, data)(run.params)
  completion = generate(run, [PROMPT.value], 120, Sampling(temperature=0.8, top_p=0.95))[0]
  print(
    _REPORT.format(
      scores=evaluate.table(evaluate.report(evaluation, data)),
      experts=evaluate.experts_in_words(evaluation, config),
      checkpoint=workdir / 'checkpoints' / str(run.step),
      workdir=str(workdir),
      metrics=workdir / 'metrics.jsonl',
      quoted=shlex.quote(str(workdir)),
      seconds=time.perf_counter() - began,
      sample=completion.prompt + completion.text,
    )
  )


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
