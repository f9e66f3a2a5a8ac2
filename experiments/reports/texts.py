"""What the report says in words of every study of the paper's."""

RULE = ' '.join(
  (
    'A comparison holds if the 95% interval of the paired difference lies wholly where it is '
    'expected, does not hold if it lies wholly elsewhere, and is undecided otherwise. '
    'An undecided difference of losses that was expected on one side of 0 is level if its interval '
    'lies within 0.02 of it.',
    'The verdict is on the claim as it is worded: only the comparisons that the table marks with '
    '"yes" or "presupposed" count, the others are what else the paper leads one to expect.',
    'The claim does not hold if a comparison marked "yes" does not, whatever is presupposed; it '
    'holds if all of these hold, and all that is presupposed does; it is level if all that keeps '
    'it from holding is level; otherwise it is undecided.',
    '"About" allows 0.02 of loss.',
    'What is known as "at most" so much can be shown to be below a bound, not to be above it; '
    '"at least" the other way round.',
    'A comparison that needs a run which has diverged is undecided; in the study of the balance '
    'losses alone divergence is an outcome, worse than any number, '
    'and must then be on the same side for every seed.',
    "Where several comparisons decide a claim, Holm's correction for their number must leave them "
    'decided, too; no interval is widened for it.',
    'Seeds that would decide are as many as bring its own interval to one side, if mean and spread '
    'stay as they are: a number to choose before they are run, and for every run of the study, '
    'since adding seeds until one is decided would decide too much.',
  )
)
ALL_PROXIES = ' '.join(
  (
    'These are proxies: a million parameters or a few, and as many tokens as one machine trains in '
    "minutes, where the paper's have 2 billion and 100 billion.",
    "The loss is of this repository's own held-out text, not of the Pile: values do not compare "
    "with the paper's, only order and differences do.",
    (
      'As compressors all of them are still behind `xz -9` on the same corpus '
      '(its rate by domain: corpus.md).'
    ),
    (
      'Models of this size answer the downstream tasks of the paper no better than by chance, '
      'so none is run.'
    ),
    'What holds here is no proof for the large models, and what does not hold here may hold there.',
  )
)
CAPTION = (
  'Means over seeds with 95% intervals. Seeds shift all models alike, which the paired differences '
  'of the table remove: a difference may be clear there though whiskers overlap here.'
)
OTHER_SEEDS = (
  'Some runs have more seeds than others: their means are not comparable, which shift with the '
  'seeds by more than models may differ; the paired differences are, '
  'each over the seeds that both have.'
)
