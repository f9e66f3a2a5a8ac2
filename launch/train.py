"""Trains a config, or goes on with a run.

python -m launch.train --config=experiments/NAME.py[:variant] --workdir=DIR [--config.SECTION.KEY=VALUE …]
"""

from absl import flags

from launch import cli

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; the same command goes on with it.', required=True)


def main(_):
  config = cli.config(CONFIG)  # before jax: a mistyped key answers at once
  from moe.train import train

  cli.show_log('moe.ops')  # which implementations run
  train(config, WORKDIR.value)


if __name__ == '__main__':
  cli.run(main)
