"""The training loop: open the workdir, prepare data, restore or start, step, log, evaluate, save."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from moe import accounting
from moe.checkpoint import Checkpointer
from moe.config import Config, differences, from_stored, must_stay
from moe.data.batches import train_iterator
from moe.data.packing import Batch
from moe.data.prepare import prepare
from moe.errors import UserError, of_file
from moe.evaluate import Evaluator
from moe.metrics.writers import MetricWriter, Progress
from moe.ops.implementation import check as check_implementation
from moe.parallel import mesh as mesh_lib
from moe.parallel import processes
from moe.train_step import TrainState, init_state, jit_step, make_train_step


class Outcome(NamedTuple):
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: stopped by a signal, to be gone on with
  metrics: dict[str, object] | None  # of the last logged step of this call


def train(config: Config, workdir: str | Path) -> Outcome:
  """Trains to config.train.num_steps, going on from the newest checkpoint in `workdir`.

  Writes config.json, data/ (unless data.dir says where), tokenizer.model, metrics.jsonl, tensorboard/, checkpoints/.
  SIGTERM or Ctrl-C saves and returns. UserError where something the user can mend is in the way. With several processes
  (`processes.join`) all call this with a workdir that all see; process 0 writes what is not an array, and prints.
  """
  try:
    return _train(config, Path(workdir))
  except OSError as error:  # a file that cannot be written, read or made
    raise of_file(error, workdir) from error


def _train(config: Config, workdir: Path) -> Outcome:
  check_implementation(config.ops.implementation)
  mesh = mesh_lib.make_mesh(config)
  processes.together(lambda: open_workdir(config, workdir))
  data = processes.main_first('data', lambda: prepare(config, data_directory(config, workdir)))
  processes.together(lambda: _write_tokenizer(data, workdir))
  batches = train_iterator(data, config, *mesh_lib.batch_share(mesh))
  where = lambda tree: mesh_lib.shardings(mesh, tree, config.mesh.zero)

  with (
    processes.stop_on_signal(mesh) as stop,
    contextlib.closing(Checkpointer(workdir, config, data.tokenizer)) as checkpointer,
    mesh_lib.use(mesh, config.mesh.zero),
  ):
    restored = checkpointer.restore_newest(where)
    if restored:
      start, state = restored.step, restored.state
      batches.set_state(restored.data_state)
      _say(f'going on from step {start} in {workdir}')
    else:
      shapes = jax.eval_shape(lambda: init_state(config))
      start, state = 0, jax.jit(lambda: init_state(config), out_shardings=where(shapes))()
    if start >= config.train.num_steps:
      _say(f'{workdir} is finished: {start} of {config.train.num_steps} steps')
      return Outcome(start, True, None)
    if stop.before_the_first_step():
      _say(f'stopped at step {start} of {workdir}, before another; the same command goes on')
      return Outcome(start, False, None)
    _say(describe_run(config, workdir))
    with processes.together(lambda: _open_writer(workdir, start)) as writer:
      run = _Run(
        config, workdir, mesh, batches, checkpointer, writer, Evaluator(config, data, mesh), stop
      )
      return _steps(run, start, state)


class _Run(NamedTuple):
  """What the steps of a run share."""

  config: Config
  workdir: Path
  mesh: Mesh
  batches: Iterator[Batch]
  checkpointer: Checkpointer
  writer: MetricWriter | None  # of process 0
  evaluator: Evaluator
  stop: processes.Stop


def _steps(run: _Run, start: int, state: TrainState) -> Outcome:
  """The steps after `start`. Only those that log, evaluate or save wait for the device."""
  config, num_steps = run.config, run.config.train.num_steps
  feed = lambda: mesh_lib.place(next(run.batches), run.mesh)
  batch = feed()
  train_step = _compile(config, run.mesh, state, batch, *run.stop.asked())
  flops = accounting.account(config).train_flops_per_token
  progress = Progress(num_steps, config.data.batch_size * config.data.seq_len, flops)
  logged, saved = None, start
  for step in range(start + 1, num_steps + 1):
    state, metrics = train_step(state, batch, *run.stop.asked())
    progress.step_done()
    last, stopping = (
      step == num_steps,
      run.stop.agreed(metrics),
    )  # read once: a later signal counts for the next step
    due = lambda every, step=step: every > 0 and step % every == 0
    saving = last or stopping or due(config.checkpoint.every_steps)
    evaluating = (
      last or due(config.evaluation.every_steps) or (saving and config.checkpoint.keep_best > 0)
    )
    if saving or evaluating or due(config.train.log_every):
      logged = jax.device_get(metrics)
      logged |= progress.rates()
      paused = time.perf_counter()
      if evaluating and not stopping:
        logged |= _held_out(run.evaluator, state.params, config)
      heatmap = last or due(config.train.heatmap_every)
      processes.together(functools.partial(_write, run.writer, step, logged, heatmap))
      _say(progress.line(step, logged))
      _stop_if_bad(logged, config, step, saved)
      if saving:
        run.checkpointer.save(step, state, run.batches.get_state(), logged.get('held_out_loss'))
        saved = step
      progress.pause(time.perf_counter() - paused)
    if stopping or last:
      break
    batch = feed()
  run.checkpointer.wait(step)
  if not last:
    _say(
      f'stopped by {run.stop.name}: saved step {step} in {run.workdir}; the same command goes on'
    )
  return Outcome(step, last, logged)


def _compile(config, mesh, state, batch, *wish):
  began = time.perf_counter()
  train_step = jit_step(processes.with_stop(make_train_step(config)), mesh, state)
  train_step = train_step.lower(state, batch, *wish).compile(mesh_lib.compiler_options(mesh))
  _say(f'compiled the training step in {time.perf_counter() - began:.0f} s')
  return train_step


def _say(line):
  if processes.is_main():
    print(line, flush=True)


def _write_tokenizer(data, workdir):
  if processes.is_main():
    (workdir / 'tokenizer.model').write_bytes(data.tokenizer.to_bytes())


def _write(writer, step, logged, heatmap):
  if writer:
    writer.write(step, logged)
    if heatmap and 'expert_load_NE' in logged:
      writer.write_expert_load(step, logged['expert_load_NE'])


def _open_writer(workdir, start):
  if not processes.is_main():
    return contextlib.nullcontext()
  return contextlib.closing(MetricWriter(workdir, resumed_from=start))


def open_workdir(config: Config, workdir: Path) -> None:
  """Makes the folder and its config.json; UserError with the differing keys if it holds a run of another config.

  A run that never logged a step, because its corpus was not found, say, is no run yet: its config may be mended.
  """
  path = workdir / 'config.json'
  if path.exists() and (workdir / 'metrics.jsonl').exists():
    try:
      old = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise UserError(
        f'{path} is not JSON ({error}): restore it, or use another --workdir'
      ) from error
    changed = differences(from_stored(old, str(path)).to_dict(), config.to_dict())
    fixed = list(filter(must_stay, changed))
    if fixed:
      listed = ', '.join(
        f'{key} ({changed[key][0]!r} there, {changed[key][1]!r} now)' for key in fixed
      )
      raise UserError(
        f'{workdir} holds a run of another config: {listed}; use another --workdir, or those values'
      )
  workdir.mkdir(parents=True, exist_ok=True)
  if not processes.is_main():
    return
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(config.to_dict(), indent=2) + '\n', encoding='utf-8')
  os.replace(temporary, path)


def data_directory(config: Config, workdir: str | os.PathLike) -> epath.Path:
  """Where a run's prepared data lies. `workdir` may be in a bucket, to be read: gs://BUCKET/DIR."""
  return epath.Path(config.data.dir) if config.data.dir else epath.Path(workdir) / 'data'


def describe_run(config: Config, workdir: Path) -> str:
  """One line on what is about to be trained, and where."""
  counts = accounting.account(config)
  devices = f'{jax.default_backend()} ({jax.devices()[0].device_kind})'
  if jax.device_count() > 1:
    sizes = mesh_lib.fill(config.mesh, jax.device_count())
    axes = ', '.join(f'{axis} {size}' for axis, size in sizes.items() if size > 1)
    devices = f'{jax.device_count()} × {devices}, mesh {axes}, {jax.process_count()} processes'
  return (
    f'{config.name}: {counts.total_params / 1e6:,.1f}M parameters, {counts.active_params / 1e6:,.1f}M active a token; '
    f'{config.train.num_steps} steps of {config.data.batch_size} × {config.data.seq_len} tokens on {devices}; '
    f'writing {workdir}'
  )


def _stop_if_bad(metrics, config, step, saved):
  if metrics['bad_streak'] > config.train.max_bad_steps:
    raise UserError(
      f'loss or gradient was not finite for more than train.max_bad_steps={config.train.max_bad_steps} steps in a row, '
      f'up to step {step}; '
      + (f'the last checkpoint, step {saved}, is intact' if saved else 'there is no checkpoint yet')
      + ': lower optimizer.peak_lr or look at the data'
    )


def _held_out(evaluator, params, config):
  evaluation = evaluator(params, config.evaluation.max_batches)
  return {
    'held_out_loss': evaluation.total.loss,
    'held_out_loss_by_domain': {domain: score.loss for domain, score in evaluation.domains.items()},
  }
