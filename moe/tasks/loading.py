"""Tasks of the harness with rows from a folder, or from the hub. Imports the harness."""

from collections.abc import Iterable
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from moe.errors import UserError, one_line
from moe.tasks import names, paper
from moe.tasks.data import Missing, Splits

# The keys that `LocalTask` takes beside the task's own.
_FOLDER, _ALLOW = 'local_folder', 'local_allow_code'
# The keys that name a source of examples other than the rows that are scored.
_SPLITS = ('fewshot_split', 'fewshot_config', 'training_split', 'validation_split')


class NoConsent(Missing):
  """A task that runs code, without --allow_code."""


def manager(wanted: Iterable[str]) -> TaskManager:
  """A TaskManager that knows these tasks, and the members of their groups.
  UserError for a name that does not exist.
  """
  known = set(wanted)
  while True:
    found = TaskManager(include_path=names.folders(sorted(known)), include_defaults=False)
    unknown = _members(found.task_index, known) - known
    if unknown <= found.task_index.keys():
      return found
    known |= unknown


def load(
  manager: TaskManager, name: str, shots: int | None, folder: Path | None, allow_code: bool
) -> dict:
  """What TaskManager.load gives for a name, with its rows read.

  shots: examples in the prompt; None: as many as the task says. Missing if there are no rows;
  NoConsent if code is not allowed and the task runs some; UserError for rows that are wrong.
  """
  options = {'class': LocalTask, _FOLDER: folder, _ALLOW: allow_code}
  if shots is not None:
    options['num_fewshot'] = shots
  entry = manager.task_index[name]
  match entry.kind:
    case Kind.PY_TASK:
      return manager.load([name])
    case Kind.GROUP:
      members = [{'group': name, **options}]
    case Kind.TAG:
      members = [{'task': member, **options} for member in sorted(entry.tags)]
    case _:
      members = [{'task': name, **options}]
  # A group around them, because a group's options for its members reach every task in them.
  around = f'asked for {name}'
  loaded = manager.load([{'group': around, 'task': members}])
  for found in ('groups', 'group_map'):
    loaded[found].pop(around)
  return loaded


class LocalTask(ConfigurableTask):
  """A task whose rows are in FOLDER/TASK, or else where the harness looks for them."""

  def __init__(self, config: dict):
    config = {key: value for key, value in config.items() if key != 'class'}
    self._folder, self._allow_code = config.pop(_FOLDER), config.pop(_ALLOW)
    shots = config['num_fewshot'] = config.get('num_fewshot') or 0
    if shots and not any(config.get(split) for split in _SPLITS):
      # Examples come from the rows that are scored; the harness then leaves out the row itself.
      config['fewshot_split'] = config.get('test_split')
    try:
      super().__init__(config=config)
    except UserError:
      raise
    except Exception:  # what a task raises over its first row
      self.refuse_bad_row()
      raise
    if shots and len(examples := self.fewshot_docs()) < shots:
      raise UserError(
        f'{self.config.task}: there are {len(examples)} rows to take examples from, and {shots} '
        'are wanted: give more rows, or say --num_fewshot'
      )

  def download(self, dataset_kwargs=None, **kwargs) -> None:
    name, folder = self.config.task, self._folder
    if self.config.unsafe_code and not self._allow_code:
      raise NoConsent(
        f'{name} runs code that the model writes: allow it, launch.evaluate --allow_code'
      )
    if folder is not None and (folder / name).is_dir():
      self.dataset = Splits(folder / name, paper.fields(name))
      return
    try:
      super().download(dataset_kwargs, **kwargs)
    except Exception as error:  # from the hub, the network, or scripts that are no longer run
      where = f'no {folder / name}' if folder else 'no --task_data'
      raise Missing(f'{where}, and not from the hub: {one_line(error)}') from error

  def fewshot_docs(self):
    # If no examples are wanted, there need not be any.
    return super().fewshot_docs() if self.config.num_fewshot else None

  def refuse_bad_row(self) -> None:
    """Raises UserError for the first row of a file that this task cannot use, if there is one."""
    if not isinstance(getattr(self, 'dataset', None), Splits):
      return
    for split, rows in list(self.dataset.items()):
      for number in range(len(rows)):
        try:
          one = rows.select([number])
          for doc in self.config.process_docs(one) if self.config.process_docs else one:
            self.doc_to_text(doc)
            self.doc_to_target(doc)
            if self.config.doc_to_choice is not None:
              self.doc_to_choice(doc)
        except Exception as error:
          line = self.dataset.read[split].lines[number]
          raise UserError(
            f'{self.dataset.path(split)}, line {line}: {self.config.task} cannot be made '
            f'of it: {type(error).__name__}: {one_line(error)}'
          ) from error


def _members(index, known):
  """The names of the members of all groups in `known`."""
  members = set()
  for name in known & index.keys():
    entry = index[name]
    if entry.kind is Kind.GROUP:
      listed = (entry.cfg or {}).get('task') or []
      members |= {each for each in listed if isinstance(each, str)}
      members |= {
        each['task']
        for each in listed
        if isinstance(each, dict)
        and 'dataset_path' not in each
        and 'task' in each
        and isinstance(each['task'], str)
      }
  return members
