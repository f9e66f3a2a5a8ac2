"""The functions that the YAML files of moe/tasks/yaml call."""

from moe.tasks import sandbox


def before_idiom(doc: dict) -> str:
  return _parts(doc)[0]


def from_idiom_on(doc: dict) -> list[str]:
  """Each candidate idiom, followed by the rest of the text."""
  return [candidate + _parts(doc)[1] for candidate in doc['candidates']]


def humaneval(answers: list[list[str]], docs: list[dict]) -> list[list[bool]]:
  """Whether each answer, appended to its prompt, passes the row's `check`."""
  programs = lambda doc, several: [
    f'{doc["prompt"]}{answer}\n{doc["test"]}\ncheck({doc["entry_point"]})\n' for answer in several
  ]
  return _run(answers, docs, programs)


def mbpp(answers: list[list[str]], docs: list[dict]) -> list[list[bool]]:
  """Whether each answer passes the row's assertions."""
  programs = lambda doc, several: [
    '\n'.join([answer, doc.get('test_setup_code') or '', *doc['test_list'], ''])
    for answer in several
  ]
  return _run(answers, docs, programs)


def pass_at_1(doc: dict, results: list[list[bool]]) -> dict[str, float]:
  """The share of a row's answers that passed."""
  (passed,) = results
  return {'pass_at_1': sum(passed) / len(passed)}


def _run(answers, docs, programs):
  wanted = [programs(doc, several) for doc, several in zip(docs, answers, strict=True)]
  passed = iter(sandbox.run_all([program for several in wanted for program in several]))
  return [[next(passed) for _ in several] for several in wanted]


def _parts(doc):
  before, mark, after = doc['content'].partition('#idiom#')
  if not mark:
    raise ValueError("its content has no '#idiom#'")
  return before, after
