"""Trains a config, or goes on with a run.

python -m launch.train --config=experiments/NAME.py[:variant] --workdir=DIR
  [--config.SECTION.KEY=VALUE …]

On several machines every process runs this command, with a workdir that all see. Under Slurm
(srun), on a TPU pod or under Open MPI they find each other; elsewhere add --coordinator=HOST:PORT
--num_processes=N --process_id=I to each. launch/supervise.sh starts a process again after a crash.

Exit code 0: trained to the end, or stopped by SIGTERM, as clusters do, and saved. 130: stopped by
Ctrl-C and saved; 129: stopped by SIGHUP (a closed terminal) and saved. Neither is 0, so that
`train && evaluate` scores no half-trained run. 2: bad input. 75: something that may go away by
itself, such as another program at work in the same folder. The same command goes on after all.
"""

from absl import flags

from moe import cli, host_memory
from moe.errors import UserError

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; the same command resumes it.', required=True
)
COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, where the processes find each other.'
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes',
  None,
  'Number of processes; just --num_processes=1 means no cluster, even inside one.',
)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
HEARTBEAT = flags.DEFINE_integer(
  'heartbeat_timeout', 60, 'Seconds of silence after which a process counts as dead.'
)
START = flags.DEFINE_integer(
  'start_timeout', 300, 'Seconds to wait for the other processes at the start.'
)


def main(_):
  config = cli.config(CONFIG, WORKDIR.value)  # before importing jax: a mistyped key fails at once
  from moe.parallel import processes
  from moe.train import train

  if '://' in WORKDIR.value:
    raise UserError(
      f'--workdir={WORKDIR.value} is a bucket: mount it, '
      'or train in a folder and copy the run there'
    )
  cluster = processes.Cluster(
    COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, HEARTBEAT.value, START.value
  )
  with processes.join(cluster):
    if processes.is_main():
      cli.show_log('moe.ops')  # which implementations run
    outcome = train(config, WORKDIR.value)
  return outcome.exit_code


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
