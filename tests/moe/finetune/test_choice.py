"""The choice of experts: as text, as a file, errors in it, and its cost."""

import dataclasses
import json

import pytest

from moe.config import from_config_dict
from moe.errors import UserError
from moe.finetune import choice
from moe.finetune.cost import cost, in_words
from tests.small import small_config

CHOSEN = {'finetune.trainable': 'experts', 'finetune.experts': '5,0;2'}

LORA = {
  'finetune.trainable': 'lora',
  'finetune.lora_rank': 2,
  'finetune.lora_targets': ('value', 'experts'),
}


def test_text_and_back():
  assert choice.parse('3,17;2;;40') == ((3, 17), (2,), (), (40,))
  assert choice.written([[17, 3], [2], [], [40]]) == '3,17;2;;40'
  assert choice.parse(';1') == ((), (1,)) and choice.parse('') == ()
  assert choice.is_file('a.json') and choice.is_file('./1;2') and not choice.is_file('1;2')


def test_a_file_becomes_the_choice_itself_and_a_run_does_without_it(tmp_path):
  path = tmp_path / 'experts.json'
  path.write_text(json.dumps({'layers': [{'experts': [5, 0], 'scores': [1, 2]}, {'experts': [2]}]}))
  given = small_config(**CHOSEN | {'finetune.experts': str(path)})
  config = choice.settled(given)
  assert config.finetune.experts == '0,5;2' and choice.settled(config) == config
  assert from_config_dict(config.to_dict()) == config
  (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
  path.unlink()
  assert choice.settled(given, str(tmp_path)) == config
  with pytest.raises(UserError, match='there is no such file'):
    choice.settled(given, str(tmp_path / 'elsewhere'))


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (None, 'there is no such file'),
    ('{"layers": [', 'is not JSON: Expecting value: line 1 column 13'),
    ('[1, 2]', "must be an object with a list 'layers'"),
    ('{"layers": [{"experts": [1]}]}', 'has 1 layers, and the model 2 MoE layers'),
    (
      '{"layers": [{"experts": [1]}, {"experts": "2"}]}',
      "layers[1] must be an object with a list 'experts' of whole numbers from 0, not {'exp",
    ),
    ('{"layers": [{"experts": [1]}, {"experts": [-1]}]}', 'layers[1] must be'),
    ('{"layers": [{"experts": [1]}, {"experts": [6]}]}', 'layer 1 has expert 6: there are 0 to 5'),
    ('{"layers": [{"experts": [1, 1]}, {"experts": []}]}', 'layer 0 has expert 1 twice'),
    ('{"layers": [{"experts": []}, {"experts": []}]}', 'chooses no expert in any layer'),
    ('{"layers": [{"layer": 1, "experts": []}]}', "layers[0] says 'layer': 1, out of order"),
  ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, content, words):
  path = tmp_path / 'experts.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError) as raised:
    choice.settled(small_config(**CHOSEN | {'finetune.experts': str(path)}))
  assert f'finetune.experts={path}' in str(raised.value) and words in str(raised.value)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('keys', 'words'),
  [
    ({'finetune.experts': ''}, 'finetune.trainable=experts needs finetune.experts'),
    ({'finetune.trainable': 'all'}, "finetune.experts='5,0;2' chooses what finetune.trainable=all"),
    ({'finetune.trainable': 'lora'}, 'finetune.trainable=lora needs finetune.lora_rank above 0'),
    (LORA | {'finetune.lora_targets': ('query',)}, 'chooses what finetune.trainable=lora does not'),
    (LORA | {'finetune.experts': ''}, "lora with 'experts' in finetune.lora_targets needs"),
    (LORA | {'finetune.lora_targets': ('queries',)}, "lora_targets: 'queries' has no adapters"),
    (LORA | {'finetune.trainable': 'experts'}, "finetune.lora_targets has 'experts', which"),
    ({'finetune.trainable': 'all', 'finetune.lora_rank': 4}, 'lora_rank=4 goes with finetune.tra'),
    (
      LORA | {'train.init_from': 'there', 'train.init_optimizer': True},
      'adapters (finetune.lora_rank=2) begin anew',
    ),
    ({'finetune.experts': '1;2;3'}, 'has 3 layers, and the model 2 MoE layers'),
    ({'finetune.experts': '1;6'}, 'MoE layer 1 has expert 6: there are 0 to 5'),
    (
      {'moe.num_experts': 0, 'moe.experts_per_token': 0},
      'finetune.trainable=experts needs routed experts: this model has none',
    ),
    (
      {
        'model.num_dense_layers': 2,
        'model.d_ff': 8,
        'finetune.trainable': 'all',
        'finetune.experts': '1;2',
      },
      'finetune.experts=1;2 needs routed experts: this model has none',
    ),
    (
      {'model.num_dense_layers': 2, 'model.d_ff': 8},
      'finetune.trainable=experts needs routed experts: this model has none',
    ),
  ],
)
def test_contradictions(keys, words):
  with pytest.raises(UserError) as raised:
    small_config(**CHOSEN | keys)
  assert words in str(raised.value)


def test_the_cost_by_hand():
  """The model has embedding, head and a last norm; and per layer attention, two norms, router and
  7 experts.
  """
  config = small_config(**CHOSEN)
  expert, router = 3 * 16 * 8, 16 * 6
  total = 2 * 32 * 16 + 2 * (4 * 16 * 16 + 2 * 16 + router + 7 * expert) + 16
  # Both layers have places for two experts; the second layer fills one of them.
  assert cost(config) == (3 * expert, 2 * 4 * 4 * expert + 4)
  whole = dataclasses.replace(config, finetune=small_config().finetune)
  assert cost(whole) == (total, 2 * 4 * total + 4)
  frozen = small_config(**{'finetune.trainable': 'router_frozen'})
  assert cost(frozen) == (total - 2 * router, 2 * 4 * (total - 2 * router) + 4)
  # Adapters of a value matrix 16 × 16, and of three chosen experts. Both layers have two places.
  adapters = 2 * 2 * (16 + 16), 3 * 2 * (16 + 8)
  lora = small_config(**CHOSEN | LORA)
  assert cost(lora) == (adapters[0] + 3 * adapters[1], 8 * (adapters[0] + 4 * adapters[1]) + 4)
  assert in_words(whole) == ''
  assert '1,152 of 8,720 parameters (13.21%), 3 of 12 routed experts' in in_words(config)


def test_of_a_wide_expert_all_units_are_places():
  """Expert 1 has units 2 and 3, expert 4 has unit 6."""
  config = small_config(**CHOSEN | {'moe.wide_experts': 2, 'finetune.experts': '1,4;4'})
  none = config.moe.num_units
  assert none == 8
  assert choice.places(config).tolist() == [[2, 3, 6], [6, none, none + 1]]
  assert cost(config).trained_params == 4 * 3 * 16 * 8
