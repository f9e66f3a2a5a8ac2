"""Beyond the paper: a MoE upcycled from a dense run, against one from scratch.

  python -m launch.sweep --sweep=experiments/studies/upcycling.py

A dense model is trained for 0.6M tokens. `launch.convert --upcycle` makes it a DeepSeekMoE of 1 +
63 (7) experts of a quarter FFN, which trains for 0.3M further tokens. So do the same MoE from
scratch and the dense run itself, continued: on the same batches and by the same schedule, warm-up
included. None takes over the optimizer's state. The paper has no upcycling: arXiv 2212.05055 starts
MoEs of whole FFNs this way, and finds them ahead of MoEs from scratch until these have had about as
many tokens as the dense run cost, and ahead of the continued dense run. What has to hold: after
0.3M further tokens the upcycled MoE has a lower loss than the one from scratch, and than the
continued dense run. Beside the claim: the continued dense run is better than it was before. The
sizes suit two slow cores that much else shares: 3 layers, d 48, 2048 tokens a step.
"""

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import PROXY, Run, Scale, Start
from experiments.studies.verdicts import Role

SOURCE = 'Upcycling'
CLAIM = (
  'At equal further tokens a MoE upcycled from a dense run has a lower loss than one from scratch, '
  'and than the dense run gone on with.'
)
# Steps of the dense run, and of each run that follows it.
_BEFORE, _FURTHER = 300, 150
_SETTINGS = {
  'model.vocab_size': 1024,
  'model.dtype': 'float32',
  'data.sources': 'builtin',
  'data.tokenizer_sample_mb': 2.0,
  'data.seq_len': 128,
  'data.batch_size': 16,
  'optimizer.peak_lr': 3e-3,
  'optimizer.warmup_steps': 30,
  'train.num_steps': _FURTHER,
  'train.log_every': 10,
  'train.heatmap_every': 150,
  'evaluation.every_steps': 50,
  'evaluation.max_batches': 4,
  'checkpoint.every_steps': 150,
  'checkpoint.keep_last': 1,
  'checkpoint.keep_best': 1,
}
_SMALL = Scale('proxy', _SETTINGS, shape=(3, 48), head_dim=24, widths={})


def sweep(scale: Scale = PROXY) -> list[Run]:
  """The runs, of one size whatever the scale."""
  del scale

  def run(variant, name, start=None, steps=_FURTHER):
    made = _SMALL.run(variant, name, {'train.num_steps': steps})
    return Run(name, made.config, made.overrides, start=start)

  return [
    run('dense', 'dense', steps=_BEFORE),
    run('deepseek_moe', 'scratch'),
    run('dense', 'dense_on', Start('dense')),
    run('deepseek_moe', 'upcycled', Start('dense', 'even')),
  ]


_DENSE = Entry('dense, before', 'dense')
_ON = Entry('dense, gone on with', 'dense_on')
_SCRATCH = Entry('MoE from scratch', 'scratch')
_UPCYCLED = Entry('MoE upcycled', 'upcycled')


def analyse(results: Results) -> Analysis:
  """The upcycled MoE against what else its further tokens could have bought."""
  return of_losses(
    results,
    [_DENSE, _ON, _SCRATCH, _UPCYCLED],
    [
      against(results, _UPCYCLED, _SCRATCH, below=0.0),
      against(results, _UPCYCLED, _ON, below=0.0),
      against(results, _ON, _DENSE, below=0.0, role=Role.BESIDE),
    ],
    'The models have about a million parameters and see 0.9M tokens in all. The dense run is far '
    'from the point where more tokens no longer help it, and the further tokens are half of its '
    'own; upcycling is meant for long dense runs. All runs have the learning rate and the warm-up '
    'of a start from scratch. The further tokens begin the text anew: the runs that start from the '
    'dense run see some of it again, the MoE from scratch sees it for the first time. Where the '
    'MoE from scratch overtakes the upcycled one is not measured.',
  )
