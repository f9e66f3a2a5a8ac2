"""`moe.accounting` as text for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe.accounting import Accounting

if TYPE_CHECKING:  # it loads jax
  from moe.finetune.cost import Cost

_ROWS = {
  'total_params': 'parameters',
  'active_params': '  a token activates',
  'expert_params': 'in experts and FFNs',
  'active_expert_params': '  a token activates',
  'non_embedding_params': 'without embedding and head',
  'active_non_embedding_params': '  a token activates',
  'trained_params': 'trained parameters',
  'optimizer_bytes': 'bytes of optimizer state',
  'train_flops_per_sequence': 'training FLOPs a sequence',
  'train_flops_per_token': 'training FLOPs a token',
  'forward_flops_per_token': 'forward FLOPs a token',
  'seq_len': 'tokens a sequence',
}


def quantity(number: float) -> str:
  """1234567 → '1.235M'; four digits, in thousands (K), millions (M),
  billions (B) or trillions (T).
  """
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
    if number >= size:
      digits = 3 if number < 10 * size else 2 if number < 100 * size else 1
      return f'{number / size:.{digits}f}{unit}'
  return str(number)


def table(accounts: Mapping[str, Accounting]) -> str:
  """A table with one aligned line for each config."""
  rows = [['config', 'total', 'active', 'experts', 'active', 'FLOPs/sequence', 'seq_len']]
  for name, a in accounts.items():
    sizes = (a.total_params, a.active_params, a.expert_params, a.active_expert_params)
    flops = quantity(a.train_flops_per_sequence)
    rows.append([name, *map(quantity, sizes), flops, str(a.seq_len)])
  name_width, *widths = (max(map(len, column)) for column in zip(*rows))
  return '\n'.join(
    '  '.join([name.ljust(name_width), *(c.rjust(width) for c, width in zip(cells, widths))])
    for name, *cells in rows
  )


def card(name: str, account: Accounting, training: 'Cost') -> str:
  """The numbers of one config, one a line."""
  width = max(map(len, _ROWS.values()))
  lines = [name]
  for field, label in _ROWS.items():
    number = getattr(training if field in ('trained_params', 'optimizer_bytes') else account, field)
    shown = str(number) if field == 'seq_len' else quantity(number)
    lines.append(f'  {label:<{width}}  {shown:>8}')
  return '\n'.join(lines)
