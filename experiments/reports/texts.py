"""What the report says in words of every study of the paper's."""

RULES = (
  'A comparison holds if the 95% interval of the paired difference lies wholly where it is '
  'expected, does not hold if it lies wholly elsewhere, and is undecided otherwise. "About" allows '
  '0.02 of loss.',
  'An undecided difference of losses that was expected on one side of 0 is level if its interval '
  'lies within 0.02 of it. (This outcome was added after the runs of Figure 6 had been seen: '
  'before, that claim was undecided, as Upcycling was.)',
  'The verdict is on the claim as it is worded: only the comparisons that the table marks with '
  '"yes" or "presupposed" count, the others are what else the paper leads one to expect.',
  'The claim does not hold if a comparison marked "yes" does not, whatever is presupposed. It '
  'holds if all of these hold, and all that is presupposed does. It is level if all that keeps it '
  'from holding is level. Otherwise it is undecided.',
  'What is known as "at most" so much can be shown to be below a bound, not to be above it; "at '
  'least" the other way round.',
  'A comparison that needs a run which has diverged is undecided. In the study of the balance '
  'losses alone divergence is an outcome, worse than any number, and must then be on the same side '
  'for every seed.',
  "Where several comparisons decide a claim, Holm's correction for their number must leave them "
  'decided, too; no interval is widened for it.',
  'Detectable is the true distance from the bound that so many seeds show with a probability of '
  '0.9, at the spread that was found. How many seeds a study has was fixed by the spread of three '
  'seeds of Table 1 (pilot_long); for some pairs it turned out to be larger.',
  'Seeds that would decide are as many as bring its own interval to one side, if mean and spread '
  'stay as they are: a number to choose before they are run, and for every run of the study, since '
  'adding seeds until one is decided would decide too much.',
)
OF_MACHINES = (
  'Runs were trained on two kinds of CPU, which round differently. Five runs of DeepSeekMoE were '
  'trained on both: their losses differ by 0.0048 (standard deviation over seeds), 0.0014 on the '
  'mean. Where the two models of a pair are of two kinds, this is part of what its interval is of.'
)
ALL_PROXIES = ' '.join(
  (
    'These are proxies: a million parameters or a few, and as many tokens as one machine trains in '
    "minutes, where the paper's have 2 billion and 100 billion.",
    "The loss is of this repository's own held-out text, not of the Pile: values do not compare "
    "with the paper's, only order and differences do.",
    'As compressors all of them are still behind xz -9 on the same corpus (its rate by domain: '
    'corpus.md).',
    'Models of this size are not expected to answer the downstream tasks of the paper better than '
    'by chance, so none is run.',
    'What holds here is no proof for the large models, and what does not hold here may hold there.',
  )
)
CAPTION = (
  'Means over seeds with 95% intervals. Where a seed shifts two models alike, their paired '
  'difference, in the table, removes that: it may be clear though whiskers overlap here.'
)
OTHER_SEEDS = (
  'Some runs have more seeds than others: their means are not comparable, which shift with the '
  'seeds by more than models may differ; the paired differences are, '
  'each over the seeds that both have.'
)
