"""What must not change when a run resumes: config, tokenizer, text.
Each fault is reported as a sentence that names it.
"""

import hashlib
from collections.abc import Mapping

from moe import config as moe_config
from moe.config import Config
from moe.data import corpus
from moe.data.store import HELD_OUT, TRAIN, PreparedData
from moe.errors import UserError

# Where text and tokenizer lie. These may change: the bytes themselves are compared.
_PLACES = ('data.sources', 'data.validation_sources', 'data.tokenizer')


def check_can_go_on(has_training: bool, where: str) -> None:
  """Raises UserError for a checkpoint without the states of optimizer and data."""
  if not has_training:
    raise UserError(
      f'{where} holds weights only, converted from elsewhere: there is no training to go on with; '
      'evaluate, sample or export it, and train from it with --config.train.init_from and another '
      '--workdir'
    )


def config_changes(stored: Config, config: Config, text_is_compared: bool) -> str:
  """'', or the keys that differ though they decide a run's results, with both values.

  `stored`: the run's config. `text_is_compared`: the caller compares the text by `text_changes` and
  the tokenizer by its bytes. Both may then have moved; the domains' weights must still be equal.
  """
  changed = moe_config.differences(stored.to_dict(), config.to_dict())
  fixed = [key for key in changed if moe_config.must_stay(key)]
  if text_is_compared:
    moved = [
      key
      for key in _PLACES
      if key in fixed and (key != 'data.sources' or same_weights(*changed[key]))
    ]
    fixed = [key for key in fixed if key not in moved]
  return moe_config.listed(changed, fixed, 'now')


def text_of(data: PreparedData) -> dict:
  """What identifies prepared data, as JSON, independent of where it lies and
  which version prepared it.
  """
  entries = {
    split: {domain: _of_domain(data, split, domain) for domain in domains}
    for split, domains in ((TRAIN, data.domains), (HELD_OUT, data.held_out_domains))
  }
  # Rows are drawn from the domains in this order.
  return {'order': list(data.domains), 'splits': entries}


def text_changes(stored: Mapping, text: Mapping) -> str:
  """'', or what differs between two results of `text_of`.
  A domain's entries that only one of them has are not compared.
  """
  if stored['order'] != text['order']:
    return f'its domains are {", ".join(stored["order"])} there, {", ".join(text["order"])} now'
  there, now = stored['splits'], text['splits']
  for split in (TRAIN, HELD_OUT):
    if there[split].keys() != now[split].keys():
      return f'{split} has the domains {", ".join(there[split])} there, {", ".join(now[split])} now'
    for domain, entry in there[split].items():
      for name in entry.keys() & now[split][domain].keys():
        if entry[name] != now[split][domain][name]:
          return (
            f'{split} {name} of domain {domain!r}: {entry[name]} there, '
            f'{now[split][domain][name]} now'
          )
  return ''


def _of_domain(data, split, domain):
  totals = data.totals(split, domain)
  entry = {name: totals[name] for name in ('documents', 'bytes', 'tokens')}
  entry |= {name: totals[name] for name in ('text_sha256', 'tokens_sha256') if name in totals}
  if split == TRAIN:
    documents = data.documents(split, domain)
    lengths = hashlib.blake2b(digest_size=16)
    for array_N in (documents.record_tokens, documents.document_bytes):
      lengths.update(array_N.tobytes())
    entry['lengths'] = lengths.hexdigest()
  return entry


def same_weights(old: str, new: str) -> bool:
  """Whether two data.sources draw from the same domains with the same weights."""
  try:
    return corpus.weights(old) == corpus.weights(new)
  except (UserError, TypeError, AttributeError):
    return False
