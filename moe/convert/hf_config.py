"""A checkpoint's config.json, read key by key. A key that nobody asks for is refused if it may
matter, and noted if it is empty.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moe import files
from moe.errors import UserError, of_file

# Keys about the text, about how a program runs, or about where a file came from. They do not change
# what a model computes.
IRRELEVANT = frozenset(
  {
    *('architectures', 'auto_map', 'model_type', 'transformers_version'),
    *('_name_or_path', 'name_or_path', 'language'),
    *('bos_token_id', 'eos_token_id', 'pad_token_id', 'unk_token_id'),
    *('return_dict', 'output_attentions', 'output_hidden_states', 'torchscript'),
    # These change how a model is computed, not what it computes.
    *('use_cache', 'pretraining_tp', 'ep_size', 'attn_implementation'),
    *('_attn_implementation', '_attn_implementation_autoset'),
  }
)
TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


class HFConfig:
  """The keys of a config.json. A layout asks for those it knows; `finish` handles the others."""

  def __init__(self, values: Mapping[str, Any], where: str):
    self._values, self._where, self._asked = values, where, set()
    self.notes: list[str] = []

  @classmethod
  def read(cls, folder: Path) -> 'HFConfig':
    """Reads the folder's config.json. UserError if it is missing, unreadable or not JSON."""
    path = folder / 'config.json'
    try:
      return cls(files.read_json(path), str(path))
    except FileNotFoundError as error:
      raise UserError(
        f'{folder} has no config.json: --from takes the folder of a Hugging Face checkpoint'
      ) from error
    except OSError as error:
      raise of_file(error, path) from error
    except ValueError as error:
      raise UserError(f'{path} is not JSON of a config ({error})') from error

  @property
  def values(self) -> Mapping[str, Any]:
    return self._values

  def integer(self, key: str, default: int | None = None) -> int:
    """An integer, or `default` if the key is absent or null. UserError if there is no default
    either, or the value is no integer.
    """
    return self._number(key, int, default)

  def real(self, key: str, default: float | None = None) -> float:
    return float(self._number(key, (int, float), default))

  def flag(self, key: str, default: bool) -> bool:
    value = self.get(key, default)
    if not isinstance(value, bool):
      raise self.refused(key, 'true or false')
    return value

  def get(self, key: str, default: Any = None) -> Any:
    """A value, or `default`, what the format implies, if the key is absent or null."""
    self._asked.add(key)
    value = self._values.get(key)
    return default if value is None else value

  def must(self, key: str, *allowed: Any) -> None:
    """UserError unless a key is absent, null or one of `allowed`, the values that the model can
    express.
    """
    value = self.get(key, allowed[0])
    if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
      raise self.refused(key, f'{" or ".join(map(repr, allowed))}, all that this model can do')

  def refused(self, key: str, words: str) -> UserError:
    return UserError(f'{self._where}: {key}={self._values.get(key)!r} must be {words}')

  def finish(self, irrelevant: Collection[str] = ()) -> None:
    """UserError for an unknown key, which may change what the model computes. If its value is
    empty, 0 or false, it only goes to `notes`. `irrelevant`: further keys to ignore.
    """
    unknown = {
      key: value
      for key, value in self._values.items()
      if key not in self._asked and key not in IRRELEVANT and key not in irrelevant
    }
    if said := [f'{key}={value!r}' for key, value in unknown.items() if value]:
      raise UserError(
        f'{self._where} has keys that are not known here and may change what the model computes: '
        f'{", ".join(said)}; take them out if they do not'
      )
    if unknown:
      self.notes.append(f'{self._where}: passed over, unknown and empty: {", ".join(unknown)}')

  def _number(self, key, kind, default):
    value = self.get(key)
    if value is None and default is None:
      raise UserError(f'{self._where} has no {key}, which the model needs')
    if value is None:
      return default
    if not isinstance(value, kind) or isinstance(value, bool):
      raise self.refused(key, 'an integer' if kind is int else 'a number')
    return value
