"""Measures what the experts of a trained model specialise in:
changes its routing, counts its choices, compares losses.

interventions   mask a token's most probable experts, change K, drop the shared experts;
                pure in (params, batch)
counts          which experts the tokens of a batch, or of all held-out text, chose:
                by sequence, token class and pair
measures        from counts, in NumPy: load, mutual information, co-activation,
                effective number of experts
redundancy      the loss with one expert's weights in another's place
gates           how open the gate of the shared experts is, by class of token
probes          what attention recalls: text that stands there twice, and one piece of it
"""

from moe.analysis.counts import (
  TOKEN_CLASSES,
  Counts,
  Survey,
  count,
  survey,
  token_class,
  token_classes,
)
from moe.analysis.interventions import Choices, Intervention, apply, forward, routing
from moe.analysis.measures import (
  Information,
  by_group,
  co_activation,
  effective_experts,
  information,
  load,
  mutual_information,
)

__all__ = [
  'TOKEN_CLASSES',
  'Choices',
  'Counts',
  'Information',
  'Intervention',
  'Survey',
  'apply',
  'by_group',
  'co_activation',
  'count',
  'effective_experts',
  'forward',
  'information',
  'load',
  'mutual_information',
  'routing',
  'survey',
  'token_class',
  'token_classes',
]
