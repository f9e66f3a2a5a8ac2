"""Section 4.4: how many of 64 fine experts are shared, 1, 2 or 4, matters little.

  python -m launch.sweep --sweep=experiments/studies/shared_ratio.py

1 + 7 of 63, 2 + 6 of 62 and 4 + 4 of 60, equal in total and activated parameters. The paper's numbers (2B, Pile loss):

  1 shared 1.808   2 shared 1.806   4 shared 1.811

What has to carry over: differences within a few thousandths, no trend. (The 16B keeps shared : active routed at 1 : 3.)
"""

from experiments.studies.common import PROXY, Run, Scale


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant) for variant in ('shared_1', 'shared_2', 'shared_4')]
