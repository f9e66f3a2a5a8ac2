"""The training loop: open the workdir, prepare data, restore or start, step, log,
evaluate, save.
"""

import contextlib
import errno
import functools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from moe import accounting, files
from moe.checkpoint import Checkpointer
from moe.config import Config
from moe.data.batches import epochs_per_step, train_iterator
from moe.data.packing import Batch
from moe.data.prepare import prepare
from moe.data.tokenizers import FILES, Tokenizer
from moe.errors import UserError, of_file
from moe.evaluate import Evaluator
from moe.finetune import choice, cost
from moe.inspection import Run
from moe.metrics import lines, writers
from moe.metrics.domains import loss_by_domain
from moe.metrics.profile import Profile
from moe.metrics.progress import Progress
from moe.metrics.writers import MetricWriter
from moe.model import Transformer
from moe.ops.implementation import check as check_implementation
from moe.optimizer import hyperparameters
from moe.parallel import feeding, processes
from moe.parallel import mesh as mesh_lib
from moe.parallel.compiler import compiler_options
from moe.parallel.sharding import replicated, unboxed
from moe.parameters import declared, shardings
from moe.run import check_workdir, data_directory, folder, open_workdir
from moe.storage import lock, must_stay, provenance
from moe.tasks.suite import Suite, open_for_training
from moe.train_step import TrainState, init_state, jit_step, make_train_step
from moe.warm_start import find as warm_start
from moe.warm_start.source import Source
from moe.warm_start.start import in_words, start_from

# The exit codes that shells give a program ended by a signal.
# SIGTERM is how clusters ask a run to make room: 0.
_EXIT_CODES = {'SIGINT': 130, 'SIGHUP': 129}


class Outcome(NamedTuple):
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: stopped by a signal, to be resumed
  metrics: dict[str, object] | None  # of the last logged step of this call
  stopped_by: str = ''  # the signal's name

  @property
  def exit_code(self) -> int:
    """0 when finished and after SIGTERM, 130 after Ctrl-C, 129 after SIGHUP."""
    return 0 if self.finished else _EXIT_CODES.get(self.stopped_by, 0)


def train(config: Config, workdir: str | Path) -> Outcome:
  """Trains to config.train.num_steps, resuming from the newest checkpoint in `workdir`.

  Writes what moe/run.py lists. SIGTERM, SIGHUP or Ctrl-C saves and returns. UserError for anything
  that the user can fix. With several processes (`processes.join`), all call this with a workdir
  that all of them see; process 0 prints, and writes everything but arrays.
  """
  try:
    return _train(config, Path(folder(workdir)))
  except OSError as error:  # a file that cannot be written, read or made
    raise of_file(error, workdir) from error


def _train(config: Config, workdir: Path) -> Outcome:
  check_implementation(config.ops.implementation)
  writers.chosen(config.train.writers)
  mesh = mesh_lib.make_mesh(config)
  config = processes.together(lambda: choice.settled(config, workdir))
  accounting.check(config, unboxed(declared(config)))
  config = warm_start.settled(config, workdir)
  source = warm_start.find(config, workdir)
  processes.together(lambda: check_workdir(workdir))
  with processes.together(lambda: _lock(workdir)) as hold:
    processes.together(lambda: open_workdir(config, workdir))
    tokenizer = processes.together(lambda: warm_start.tokenizer(config, source, workdir))
    directory = data_directory(config, workdir)
    data = processes.main_first(
      'data', lambda: prepare(config, directory, processes.is_main(), tokenizer)
    )
    suite = processes.together(lambda: open_for_training(config))
    text = processes.together(lambda: must_stay.text_of(data))
    processes.together(lambda: warm_start.check_text(config, source, text))
    batches = train_iterator(data, config, *feeding.batch_share(mesh))
    with (
      processes.stop_on_signal(mesh) as stop,
      contextlib.closing(Checkpointer(workdir, config, data.tokenizer, text)) as checkpointer,
      mesh_lib.use(mesh, config.mesh.zero),
    ):
      scorer = _Scorer(config, mesh, Evaluator(config, data, mesh), data.tokenizer, suite)
      loop = _Loop(
        config=config,
        workdir=workdir,
        mesh=mesh,
        batches=batches,
        checkpointer=checkpointer,
        scorer=scorer,
        stop=stop,
        hold=hold,
        epochs=epochs_per_step(data, config),
      )
      return _resume_or_start(loop, data.tokenizer, source)


def _resume_or_start(loop: '_Loop', tokenizer, source: Source | None) -> Outcome:
  """Restores the run or starts it, from another run's weights if there is a `source`,
  and takes the steps that are left.
  """
  config, workdir = loop.config, loop.workdir
  where = functools.partial(shardings, config, loop.mesh)
  restored = loop.checkpointer.restore_newest(where)
  if restored:
    start, state = restored.step, restored.state
    loop.batches.set_state(restored.data_state)
    _say(f'going on from step {start} in {workdir}')
  elif source:
    start, (source, state, place) = 0, start_from(source, config, where)
    if place:
      loop.batches.set_state(place)
    for line in in_words(source, config):
      _say(line)
  else:
    shapes = jax.eval_shape(lambda: init_state(config))
    init = jax.jit(functools.partial(init_state, config), out_shardings=where(shapes))
    start, state = 0, init(np.uint32(config.train.seed))
  finished, owed = start >= config.train.num_steps, _is_owed(loop, start)
  if finished and not owed:
    _say(f'{workdir} is finished: {start} of {config.train.num_steps} steps')
    return Outcome(start, True, None)
  if loop.stop.before_the_first_step():
    _say(f'stopped at step {start} of {workdir}, before another; the same command goes on')
    return Outcome(start, finished, None, loop.stop.name)
  _say(describe_run(config, workdir))
  if told := cost.in_words(config):
    _say(told)
  processes.together(lambda: _write_beginning(config, workdir, tokenizer, source))
  if source:
    # Saved before anything says that the run has begun: from here on it does not need the source.
    loop.checkpointer.save(0, state, loop.batches.get_state(), None)
    loop.checkpointer.wait(0)
  with processes.together(lambda: _open_writer(config, workdir, start)) as writer:
    loop = loop._replace(writer=writer)
    if owed:
      _score_owed(loop, start, state)
    return Outcome(start, True, None) if finished else _steps(loop, start, state)


class _Scorer(NamedTuple):
  """Scores held-out text and tasks at an evaluation."""

  config: Config
  mesh: Mesh
  evaluator: Evaluator
  tokenizer: Tokenizer
  suite: Suite | None  # of evaluation.tasks

  def __call__(self, step: int, params: dict) -> tuple[dict[str, object], bool]:
    """(values of held-out text and tasks for the log, whether the text is a sample)."""
    evaluation = self.evaluator(params, self.config.evaluation.max_batches)
    domains = evaluation.domains.items()
    values = {
      'held_out_loss': evaluation.total.loss,
      'held_out_loss_by_domain': {domain: score.loss for domain, score in domains},
    }
    if self.suite:
      model = Transformer(self.config)
      run = Run(model, params, self.tokenizer, self.config, step, self.mesh)
      values['score_by_task'] = self.suite.score(run).by_metric()
    return values, evaluation.is_sample


class _Loop(NamedTuple):
  """What the steps of a run share."""

  config: Config
  workdir: Path
  mesh: Mesh
  batches: Iterator[Batch]
  checkpointer: Checkpointer
  scorer: '_Scorer'
  stop: processes.Stop
  hold: lock.Hold | None  # of process 0
  epochs: dict[str, float]  # by domain, in the data's order, the share of its text that a step sees
  writer: MetricWriter | None = None  # of process 0


def _steps(loop: _Loop, start: int, state: TrainState) -> Outcome:
  """The steps after `start`. Only those that log, evaluate or save wait for the device."""
  config, num_steps = loop.config, loop.config.train.num_steps
  batch = _feed(loop)
  numbers = jax.device_put(hyperparameters(config), replicated(loop.mesh))
  train_step = _compile(config, loop.mesh, state, batch, numbers, *loop.stop.asked())
  flops = accounting.account(config).train_flops_per_token
  tokens = config.data.batch_size * config.data.seq_len
  progress = Progress(num_steps, tokens, flops, loop.epochs)
  traced = config.train.profile_steps if processes.is_main() else ()
  profile = Profile(traced, loop.workdir / 'profile', train_step)
  logged, saved = None, start
  for step in range(start + 1, num_steps + 1):
    profile.before(step)
    state, metrics = train_step(state, batch, numbers, *loop.stop.asked())
    if table := profile.after(step, metrics):
      _say(table)
    progress.step_done()
    last = step == num_steps
    stopping = loop.stop.agreed(metrics)  # read once: a later signal counts for the next step
    saving = last or stopping or _due(config.checkpoint.every_steps, step)
    # A process that is asked to stop has little time: `_score_owed` evaluates on resuming.
    evaluating = _evaluates(config, step) and not stopping
    heatmap = last or _due(config.train.heatmap_every, step)
    if saving or evaluating or heatmap or _due(config.train.log_every, step):
      logged = jax.device_get(metrics)
      logged |= loss_by_domain(logged, tuple(loop.epochs)) | progress.rates(step)
      if config.ops.force_balanced_routing:
        logged['force_balanced_routing'] = True
      paused = time.perf_counter()
      is_sample = False
      if evaluating:
        held_out, is_sample = loop.scorer(step, state.params)
        logged |= held_out
      processes.together(functools.partial(_write, loop, step, logged, heatmap))
      _say(progress.line(step, logged, is_sample))
      _stop_if_bad(logged, config, step, saved)
      if saving:
        loop.checkpointer.save(step, state, loop.batches.get_state(), logged.get('held_out_loss'))
        saved = step
      progress.pause(time.perf_counter() - paused)
    if stopping or last:
      break
    asked = time.perf_counter()
    batch = _feed(loop)
    progress.waited_for_data(time.perf_counter() - asked)
  profile.close()
  loop.checkpointer.wait(step)
  if not last:
    _say(
      f'stopped by {loop.stop.name}: saved step {step} in {loop.workdir}; the same command goes on'
    )
  return Outcome(step, last, logged, '' if last else loop.stop.name)


def _feed(loop):
  return feeding.place(next(loop.batches), loop.mesh)


def _compile(config, mesh, state, *arguments):
  began = time.perf_counter()
  if config.train.profile_steps:
    # Else a step read from moe/compiled.py's folder has the scopes of the code that compiled it.
    jax.config.update('jax_compilation_cache_include_metadata_in_key', True)
  train_step = jit_step(processes.with_stop(make_train_step(config)), mesh, state)
  train_step = train_step.lower(state, *arguments).compile(compiler_options(mesh))
  _say(f'compiled the training step in {time.perf_counter() - began:.0f} s')
  return train_step


def _due(every: int, step: int) -> bool:
  return every > 0 and step % every == 0


def _evaluates(config: Config, step: int) -> bool:
  """Whether a run that is not being stopped scores held-out text at a step."""
  last = step == config.train.num_steps
  saves = last or _due(config.checkpoint.every_steps, step)
  return (
    last or _due(config.evaluation.every_steps, step) or (saves and config.checkpoint.keep_best > 0)
  )


def _is_owed(loop: _Loop, start: int) -> bool:
  """Whether a signal stopped the run at step `start`, which was due for a held-out loss
  that there was no time for.
  """
  if start == 0 or not _evaluates(loop.config, start):
    return False
  owed = False
  if processes.is_main():
    line = lines.last_up_to(loop.workdir / 'metrics.jsonl', start)
    owed = line is not None and line['step'] == start and 'held_out_loss' not in line
  return bool(processes.from_main(int(owed)))


def _score_owed(loop: _Loop, start: int, state: TrainState) -> None:
  """Scores the step that the run resumes from, adds the scores to its line of metrics.jsonl,
  and notes the loss for `checkpoint.keep_best`.
  """
  held_out, _ = loop.scorer(start, state.params)
  loss = held_out['held_out_loss']
  _say(f'step {start}, where the run was stopped: held-out {loss:.4f}')

  def add():
    if loop.writer:
      loop.writer.amend(start, held_out)
    loop.checkpointer.note_held_out_loss(start, loss)

  processes.together(add)


def _say(line):
  if not processes.is_main():
    return
  try:
    print(line, flush=True)
  except OSError as error:
    # Nobody reads stdout any more (`| head`, a closed terminal): no reason to end a run of weeks.
    if error.errno not in (errno.EPIPE, errno.EIO):
      raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lock(workdir):
  if not processes.is_main():
    return contextlib.nullcontext()
  hold = lock.acquire(workdir)
  if hold.taken_over:
    _say(hold.taken_over)
  return contextlib.closing(hold)


def _write_beginning(config, workdir, tokenizer, source):
  """Writes what is written once a start, after all checks: a refused start changes nothing."""
  if not processes.is_main():
    return
  for name, content in tokenizer.files().items():
    files.replace(workdir / name, content)
  # Files of another kind of tokenizer, which a start that took no step may have left.
  for name in set(FILES) - tokenizer.files().keys():
    (workdir / name).unlink(missing_ok=True)
  now, identity = provenance.describe(), source.identity if source else None
  if config.train.init_from and (identity := identity or provenance.source(workdir)):
    now[provenance.SOURCE] = identity
  if changed := provenance.note(workdir, now):
    print(f'warning: {changed}', file=sys.stderr, flush=True)


def _write(loop, step, logged, heatmap):
  if loop.hold:
    loop.hold.check()
  if loop.writer:
    loop.writer.write(step, logged, heatmap)


def _open_writer(config, workdir, start):
  if not processes.is_main():
    return contextlib.nullcontext()
  if told := lines.take_back(workdir / 'metrics.jsonl', start):
    _say(told)
  return contextlib.closing(MetricWriter(config, workdir, resumed_from=start))


def describe_run(config: Config, workdir: Path) -> str:
  """One line on what is about to be trained, and where."""
  counts = accounting.account(config)
  devices = f'{jax.default_backend()} ({jax.devices()[0].device_kind})'
  if jax.device_count() > 1:
    sizes = mesh_lib.fill(config.mesh, jax.device_count())
    axes = ', '.join(f'{axis} {size}' for axis, size in sizes.items() if size > 1)
    devices = f'{jax.device_count()} × {devices}, mesh {axes}, {jax.process_count()} processes'
  forced = (
    '; ops.force_balanced_routing: experts are dealt out, not chosen; only its times mean anything'
    if config.ops.force_balanced_routing
    else ''
  )
  return (
    f'{config.name}: {counts.total_params / 1e6:,.1f}M parameters, '
    f'{counts.active_params / 1e6:,.1f}M active a token; {config.train.num_steps} steps of '
    f'{config.data.batch_size} × {config.data.seq_len} tokens on {devices}; '
    f'writing {workdir}{forced}'
  )


def _stop_if_bad(metrics, config, step, saved):
  if metrics['bad_streak'] > config.train.max_bad_steps:
    raise UserError(
      'loss or gradient was not finite for more than '
      f'train.max_bad_steps={config.train.max_bad_steps} steps in a row, up to step {step}; '
      + (f'the last checkpoint, step {saved}, is intact' if saved else 'there is no checkpoint yet')
      + ': lower optimizer.peak_lr or look at the data'
    )
