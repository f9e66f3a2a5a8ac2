"""A row of every benchmark of the paper, with the fields that docs/evaluation.md names."""

ROWS = {
  'pile_text': {'text': 'the quick brown fox 专家'},
  'hellaswag': {
    'activity_label': 'Fox',
    'ctx_a': 'the quick',
    'ctx_b': 'brown fox',
    'endings': ['jumps over', 'of one token', 'is the gate', 'in one line'],
    'label': '0',
  },
  'piqa': {'goal': 'see a fox', 'sol1': 'the lazy dog', 'sol2': 'the quick brown fox', 'label': 1},
  'arc_easy': {
    'question': 'which?',
    'choices': {'text': ['the fox', 'the dog', 'an expert'], 'label': ['A', 'B', 'C']},
    'answerKey': 'B',
  },
  'race_middle': {
    'article': 'the fox jumps over the dog.',
    'question': 'who jumps?',
    'options': ['the fox', 'the dog', 'an expert', 'a token'],
    'answer': 'A',
  },
  'race': {
    'article': 'the fox jumps over the dog.',
    'problems': "[{'question': 'who?', 'answer': 'A', 'options': ['the fox', 'a', 'b', 'c']}]",
  },
  'drop': {
    'passage': 'the fox jumps over the dog.',
    'question': 'who jumps?',
    'answer': {'number': '', 'date': {'day': '', 'month': '', 'year': ''}, 'spans': ['the fox']},
    'validated_answers': {
      'number': [''],
      'date': [{'day': '', 'month': '', 'year': ''}],
      'spans': [['fox']],
    },
    'section_id': 'a',
    'query_id': 'b',
  },
  'gsm8k': {'question': 'one and one?', 'answer': 'It is two. #### 2'},
  'hendrycks_math_algebra': {'problem': '1 + 1?', 'solution': 'It is $\\boxed{2}$.'},
  'humaneval': {
    'prompt': 'def add(a, b):\n',
    'test': 'def check(f):\n  assert f(2, 3) == 5',
    'entry_point': 'add',
  },
  'mbpp': {
    'text': 'Add.',
    'code': 'def add(a, b):\n  return a + b',
    'test_list': ['assert add(1, 1) == 2'],
  },
  'triviaqa': {
    'question': 'who jumps',
    'answer': {'aliases': ['the fox', 'a fox'], 'value': 'fox'},
  },
  'nq_open': {'question': 'who jumps', 'answer': ['the fox']},
  'mmlu_anatomy': {'question': 'which?', 'choices': ['a', 'b', 'c', 'd'], 'answer': 2},
  'winogrande': {
    'sentence': 'the fox saw the dog, and _ jumps.',
    'option1': 'the fox',
    'option2': 'the dog',
    'answer': '1',
  },
  'cluewsc': {
    'text': '专家把词交给她。',
    'target': {'span1_text': '专家', 'span2_text': '她'},
    'label': 'false',
  },
  'ceval-valid_law': {
    'question': '哪个?',
    'A': '专家',
    'B': '词',
    'C': '模型',
    'D': '门',
    'answer': 'C',
  },
  'cmmlu_agronomy': {
    'Question': '哪个?',
    'A': '专家',
    'B': '词',
    'C': '模型',
    'D': '门',
    'Answer': 'C',
  },
  'chid': {
    'content': '专家#idiom#模型。',
    'candidates': ['每个词', '少数几个', '混合'],
    'answer': 2,
  },
  'bbh_fewshot_snarks': {'input': 'which?', 'target': '(A)'},
  'truthfulqa_mc2': {
    'question': 'who jumps?',
    'mc1_targets': {'choices': ['the fox', 'the dog'], 'labels': [1, 0]},
    'mc2_targets': {'choices': ['the fox', 'the dog'], 'labels': [1, 0]},
  },
}
ROWS['arc_challenge'] = ROWS['arc_easy']

# Fields whose text `several` may vary.
_TEXTS = ('question', 'Question', 'text', 'goal', 'article', 'passage', 'problem', 'sentence')


def several(name: str, fields, count: int) -> list[dict]:
  """`count` rows with these fields only, no two equal if one of the fields can be varied."""
  row = {key: ROWS[name][key] for key in fields}
  varied = next((key for key in _TEXTS if key in row), None)
  change = lambda number: {varied: f'{number} {row[varied]}'} if varied else {}
  return [row | change(number) for number in range(count)]
