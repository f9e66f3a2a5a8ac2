"""Texts of the report that hold for every study of the paper."""

RULES = (
  'A comparison holds if the 95% interval of the paired difference lies wholly in the expected '
  'range, does not hold if it lies wholly outside, and is undecided otherwise. "About" allows 0.02 '
  'of loss.',
  'An undecided difference of losses that was expected on one side of 0 is level if its interval '
  'lies within 0.02 of 0. (This outcome was added after the runs of Figure 6 had been seen: '
  'before, that claim was undecided, and so was the one of Upcycling.)',
  'The verdict is on the claim as it is worded: only the comparisons that the table marks with '
  '"yes" or "presupposed" count. The others test what else the paper leads one to expect; those '
  'that do not hold are named after the verdict. A change that was only tried is expected by '
  'nobody: its outcome says whether it helps.',
  'The claim does not hold if a comparison marked "yes" does not hold, whatever the presupposed '
  'ones show, which are named if they do not hold. It holds if all comparisons marked "yes" or '
  '"presupposed" hold. It is level if those that do not hold are all marked "yes" and level. '
  'Otherwise it is undecided.',
  'A value that is known only as "at most" so much can be shown to be below a bound, but not above '
  'it; with "at least" it is the other way round.',
  'A comparison that needs a diverged run is undecided. Only in the study of the balance losses is '
  'divergence an outcome, worse than any number; the seeds that have not diverged must then say '
  'the same by their interval.',
  "If several comparisons decide a claim, each must still be decided after Holm's correction for "
  'their number. The intervals are not widened for it.',
  'Detectable is the true distance from the bound that this number of seeds shows with a '
  'probability of 0.9, at the spread that was found. The number of seeds of a study was fixed by '
  'the spread of three seeds of Table 1 (pilot_long); for some pairs the spread turned out to be '
  'larger.',
  'The seeds that would decide a comparison are as many as bring its own interval to one side of '
  'the bound, if mean and spread stay as they are. This number is to be chosen before the seeds '
  'are run, and for every run of the study: adding seeds until a comparison is decided would find '
  'differences that are not there.',
)
OF_MACHINES = (
  'Runs were trained on three kinds of CPU (AVX2, AVX-512, AMX), which round differently. Five '
  'runs of DeepSeekMoE were trained on the last two: their losses differ by 0.0048 (standard '
  'deviation over seeds), and by 0.0014 in the mean. If the two models of a pair were trained on '
  'different kinds, its interval includes this difference.'
)
ALL_PROXIES = ' '.join(
  (
    'These models are proxies, with one or a few million parameters and as many tokens as one '
    "machine trains on in minutes; the paper's have 2 billion parameters and 100 billion tokens.",
    "The loss is that of this repository's own held-out text, not of the Pile: its order and "
    "differences can be compared with the paper's, its values cannot.",
    'As compressors the models are all still behind xz -9 on the same corpus (corpus.md has its '
    'rate for each domain).',
    'Models of this size are not expected to answer the downstream tasks of the paper better than '
    'by chance, so none of the tasks is run.',
    'What holds here is no proof for the large models, and what does not hold here may hold there.',
  )
)
CAPTION = (
  'Means over seeds with 95% intervals. A seed may shift two models alike: this cancels in their '
  'paired difference (in the table), which may be clear even if whiskers overlap here.'
)
OTHER_SEEDS = (
  'Some runs have more seeds than others. Their means are not comparable: they shift with the '
  'seeds by more than the models may differ. The paired differences are comparable, since each is '
  'over the seeds that both runs have.'
)
