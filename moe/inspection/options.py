"""What may be changed in a trained model: inference options of moe.*, and interventions."""

import dataclasses

import jax
import numpy as np

from moe import intervention
from moe.analysis import Intervention, interventions
from moe.config import KEYS, Config, from_config_dict, unknown_key
from moe.contradictions import contradictions
from moe.errors import UserError
from moe.model import Transformer
from moe.parallel.sharding import unboxed
from moe.parameters import declared
from moe.storage.partial import named


def with_options(config: Config, params: dict, options: dict[str, object]) -> Config:
  """The config with keys of moe.* changed.

  UserError for a key that would change the shapes of parameters,
  or that does not affect what a trained model computes.
  """
  for name in options:
    if f'moe.{name}' not in KEYS:
      raise unknown_key(f'moe.{name}')
  stored = config.to_dict()
  made = from_config_dict(stored | {'moe': stored['moe'] | options})
  changed = {name: v for name, v in options.items() if v != getattr(config.moe, name)}
  if difference := _reshaped(made, params):
    listed = ', '.join(f'moe.{name}={value!r}' for name, value in changed.items())
    before = ', '.join(repr(getattr(config.moe, name)) for name in changed)
    raise UserError(
      f'{listed} would change the parameters ({difference}), which a trained model has as they '
      f'are: leave it {before}'
    )
  for name, value in changed.items():
    if name in _CHANGES:  # a router may refuse it
      interventions.apply(config, params, Intervention(**{name: value}))
      continue
    old = getattr(config.moe, name)
    without = dataclasses.replace(made, moe=dataclasses.replace(made.moe, **{name: old}))
    # A key without which the other changes contradict each other is of use.
    if not contradictions(without) and _program(without) == _program(made):
      raise UserError(
        f'moe.{name}={value!r} changes nothing that this trained model computes: leave it {old!r}'
      )
  return made


def intervened(
  config: Config, model: Transformer, params: dict, intervention: Intervention
) -> tuple[Transformer, dict]:
  """The model and its parameters under one more intervention."""
  changed, params, masked = interventions.apply(config, params, intervention)
  return model.clone(config=changed, probe=model.probe._replace(masked=masked)), params


def asked_for(intervention: Intervention | None, changes: dict[str, object]) -> Intervention:
  """The Intervention, or the default one, with some fields changed. UserError for unknown names."""
  if unknown := sorted(changes.keys() - _CHANGES):
    raise UserError(
      f'there is no intervention {unknown[0]!r}: there are {", ".join(sorted(_CHANGES))}'
    )
  return dataclasses.replace(intervention or Intervention(), **changes)


def check_room(model: Transformer) -> None:
  """Raises UserError if masking leaves fewer experts than a token chooses."""
  if model.probe.masked:
    moe = model.config.moe
    intervention.check_room(moe, moe.experts_per_token, model.probe.masked)


_CHANGES = {field.name for field in dataclasses.fields(Intervention)}


def _reshaped(config, params):
  """The first parameter that has another shape in a model of this config, in words; or ''."""
  shapes = lambda tree: {'/'.join(name): tuple(x.shape) for name, x in named(tree).items()}
  ours, theirs = shapes(params), shapes(unboxed(declared(config)))
  for name in [*ours, *theirs]:
    if ours.get(name) != theirs.get(name):
      return f'{name}: {theirs.get(name, "none")} for {ours.get(name, "none")}'
  return ''


def _program(config):
  """The lowered forward pass as text, before optimisation: two configs with the same text compute
  the same.
  """
  ids_BL = np.zeros((1, 8), np.int32)
  forward = lambda params: Transformer(config).apply({'params': params}, ids_BL, ids_BL, ids_BL)[0]
  return jax.jit(forward).lower(unboxed(declared(config))).as_text()
