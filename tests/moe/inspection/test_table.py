"""Routing as a table of rows: compared with the arrays, through Parquet and back, and streamed."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from moe.data.store import HELD_OUT
from moe.errors import UserError
from moe.evaluate import Evaluator
from tests.moe.inspection.opened import IDS, run_of

pytestmark = pytest.mark.usefixtures('quick_compile')

TEXTS = ['the expert router', 'one', 'gate, gate and gate again: a longer text 中文']


@pytest.mark.parametrize('affinities', [False, True])
def test_a_row_a_token_and_layer_through_parquet_and_back(data, tmp_path, affinities):
  run = run_of(data.tokenizer, **{'moe.experts_per_token': 3})
  table = run.routing_table(TEXTS, affinities=affinities)
  parquet.write_table(table, tmp_path / 'routing.parquet')
  again = parquet.read_table(tmp_path / 'routing.parquet')
  assert again.schema.equals(table.schema, check_metadata=True) and again.equals(table)
  assert again.schema.metadata[b'run'] == b'small' and again.schema.metadata[b'step'] == b'7'
  rows, at = again.to_pylist(), 0
  asked = run.tokens(TEXTS), run.routing(TEXTS, affinities=affinities), run.loss(TEXTS)
  for number, (ids, routing, loss) in enumerate(zip(*asked, strict=True)):
    for position, token in enumerate(ids):
      for layer in range(2):
        row = rows[at]
        assert [row[name] for name in ('document', 'position', 'token', 'layer')] == [
          *(number, position, token, layer)
        ]
        assert row['piece'] == run.tokenizer.pieces[token]
        assert row['experts'] == routing.experts_NLK[layer, position].tolist()
        assert row['gates'] == routing.gates_NLK[layer, position].tolist()
        assert row['loss'] == loss.losses_L[position]
        assert ('affinities' in row) == affinities
        if affinities:
          assert row['affinities'] == routing.affinities_NLE[layer, position].tolist()
        at += 1
  assert at == len(rows)


def test_of_ids_without_a_tokenizer():
  table = run_of().routing_table(IDS)
  assert table['piece'].null_count == table.num_rows == 2 * sum(map(len, IDS))
  # The last token has no loss: the next one is unknown.
  rows = table.to_pylist()
  last = [row['loss'] is None for row in rows]
  assert last == [row['position'] == len(IDS[row['document']]) - 1 for row in rows]
  assert run_of().routing_table([]).num_rows == 0


def test_held_out_text_is_streamed_in_row_groups(data, tmp_path):
  run, path = run_of(data.tokenizer), tmp_path / 'new' / 'routing.parquet'
  count = run.save_routing(data, path, affinities=True)
  file = parquet.ParquetFile(path)
  table = file.read()
  assert [each.name for each in path.parent.iterdir()] == ['routing.parquet']
  assert table.num_rows == count and table.column_names[0] == 'domain'
  # A row group holds at most a batch of windows.
  limit = run.config.evaluation.batch_size * run.config.data.seq_len * 2
  groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
  assert len(groups) > 3 and max(groups) <= limit
  scores, domains = Evaluator(run.config, data)(run.params), table['domain'].to_pylist()
  for domain, score in scores.domains.items():
    ours = table.filter(pyarrow.array([each == domain for each in domains]))
    losses = ours.filter(pyarrow.compute.equal(ours['layer'], 1))['loss'].to_numpy()
    assert len(losses) == score.tokens
    assert losses.astype(np.float64).mean() == pytest.approx(score.loss, rel=1e-6)
    documents = data.documents(HELD_OUT, domain)
    bos = data.tokenizer.bos_id
    ids = [[bos, *documents.document(number).tolist()] for number in range(len(documents))]
    there, plain = run.routing_table(ids, affinities=True), ours.drop_columns('domain')
    for name in ('document', 'position', 'token', 'piece', 'layer', 'experts'):
      assert plain[name].to_pylist() == there[name].to_pylist()
    for name in ('gates', 'affinities'):
      values = [np.array(each[name].to_pylist()) for each in (plain, there)]
      np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-7)


def test_a_file_that_cannot_be_written_is_refused_and_none_is_left_half_done(
  data, tmp_path, monkeypatch
):
  run, path = run_of(data.tokenizer), tmp_path / 'routing.parquet'
  (tmp_path / 'there').write_text('mine')
  for name, message in (
    (tmp_path / 'there', 'there: File exists; choose another name, or delete it'),
    (tmp_path, 'File exists'),
    (tmp_path / 'there' / 'below', 'cannot write the routing in'),
    ('gs://bucket/file', 'it must be a file on this machine'),
    ('', 'it must be a file on this machine'),
  ):
    with pytest.raises(UserError, match=message) as error:
      run.save_routing(data, name)
    assert '\n' not in str(error.value)
  dense = run_of(data.tokenizer, **{'moe.num_experts': 0, 'moe.experts_per_token': 0})
  with pytest.raises(UserError, match='no routed experts'):
    dense.save_routing(data, path)

  def full(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(parquet.ParquetWriter, 'write_table', full)
  with pytest.raises(UserError, match=r'routing\.parquet: No space left on device'):
    run.save_routing(data, path)
  assert [each.name for each in tmp_path.iterdir()] == ['there']
