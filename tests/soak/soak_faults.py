"""Twenty times kill -9 of one of two processes, the coordinator included,
at random steps: `make soak`.

Not part of `make test`. Half a minute a fault on 2 idle cores;
SOAK_FAULTS and SOAK_SEED change their number and order.
"""

import os
import random
import signal
import time

from moe.storage.reading import available_steps
from tests.launch.runs import conftest as of_runs
from tests.launch.runs import programs
from tests.moe.processes import group as groups

corpus, data_flags = of_runs.corpus, of_runs.data_flags

FAULTS = int(os.environ.get('SOAK_FAULTS', '20'))
SEED = int(os.environ.get('SOAK_SEED', '0'))
# Steps from the last one before a fault to where the next is due; it comes a few later.
LONGEST_GAP = 15
EVERY = 10  # steps between saves


def test_faults_at_random_steps_change_no_bit(data_flags, tmp_path):
  flags = (
    *data_flags,
    f'--config.train.num_steps={2 * FAULTS * LONGEST_GAP}',
    f'--config.checkpoint.every_steps={EVERY}',
    '--config.checkpoint.keep_best=0',
    '--config.evaluation.every_steps=0',
  )
  groups.check(2, tmp_path / 'undisturbed', *flags)
  generator, step, saved = random.Random(SEED), 0, []
  with groups.Group(2, tmp_path / 'run', *flags, supervised=True) as group:
    for number in range(FAULTS):
      # Later than any step that an earlier start has logged; and somewhere within a step or a save.
      step += generator.randint(1, LONGEST_GAP)
      victim, delay = generator.randrange(2), generator.random() / 10  # seconds
      group.wait_for_step(step)
      time.sleep(delay)
      pids = [group.pid(process) for process in (0, 1)]
      saved.append(max(available_steps(group.workdir), default=0))
      group.send(signal.SIGKILL, victim)
      began = time.monotonic()
      for pid in pids:
        group.wait_for_end(pid)
      seconds = time.monotonic() - began
      assert seconds < groups.HEARTBEAT + 5
      step = programs.lines(group.workdir)[-1]['step']
      print(
        f'fault {number + 1}: process {victim} at step {step}, '
        f'the other ended {seconds:.1f} s later',
        flush=True,
      )
    assert group.wait() == [0, 0], group.output()
    output = group.output(0)
  print(f'{output.count("supervise: ")} restarts of process 0')
  starts = _starts(output)[1:]
  assert len(starts) == FAULTS and all(start >= save for start, save in zip(starts, saved)), (
    starts,
    saved,
  )
  assert programs.losses(tmp_path / 'run') == programs.losses(tmp_path / 'undisturbed')


def _starts(output):
  """The step from which every start that came to training went on;
  0 where it found nothing to go on with.
  """
  starts = []
  for start in output.split('supervise: exit code'):
    if 'compiled the training step' in start:
      going_on = [line for line in start.splitlines() if line.startswith('going on from step')]
      starts.append(int(going_on[0].split()[4]) if going_on else 0)
  return starts
