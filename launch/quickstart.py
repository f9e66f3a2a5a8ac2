"""A run from start to finish: data, tokenizer, training, evaluation, a sample and a report. `make quickstart` calls it.

  python -m launch.quickstart --config=experiments/quickstart.py --workdir=DIR [--config.train.num_steps=… …]

Run it again and it goes on where it stopped, or reports again.
"""

import time
from pathlib import Path

from absl import flags

from moe import cli

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
PROMPT = flags.DEFINE_string('prompt', 'def read_', 'What the sample goes on from.')

_REPORT = """
{scores}

experts        {experts} routed, {active} a token, over {layers} MoE layers; on the held-out text the busiest expert of
               a layer has {worst:.2f} times the mean load at most, {idle} of {all_experts} experts are idle
checkpoint     {checkpoint}
               from moe.checkpoint import load_for_notebook; run = load_for_notebook('{workdir}')
curves         {workdir}/metrics.jsonl, or: pip install tensorboard; tensorboard --logdir {workdir}
this run       {seconds:.0f} s from start to report

sample, at temperature 0.8:
{sample}
"""


def main(_):
  began = time.perf_counter()
  config = cli.config(CONFIG)
  from moe import evaluate
  from moe.checkpoint import load_for_notebook
  from moe.data.prepare import prepare
  from moe.generate import Sampling, generate
  from moe.train import data_directory, train

  workdir = Path(WORKDIR.value)
  if not train(config, workdir).finished:
    return 1
  run = load_for_notebook(workdir)
  data = prepare(config, data_directory(config, workdir))
  evaluation = evaluate.Evaluator(config, data)(run.params)
  completion = generate(run, [PROMPT.value], 120, Sampling(temperature=0.8, top_p=0.95))[0]
  load_NE = evaluation.expert_load_NE
  print(
    _REPORT.format(
      scores=evaluate.table(evaluate.report(evaluation, data)),
      experts=load_NE.shape[1],
      active=config.moe.experts_per_token,
      layers=load_NE.shape[0],
      worst=load_NE.max(),
      idle=(load_NE == 0).sum(),
      all_experts=load_NE.size,
      checkpoint=workdir / 'checkpoints' / str(run.step),
      workdir=workdir,
      seconds=time.perf_counter() - began,
      sample=completion.prompt + completion.text,
    )
  )


if __name__ == '__main__':
  cli.run(main)
