"""The standard error of bits per byte, compared with a bootstrap over documents."""

import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean, mean_stderr

from moe.tasks.errors import of_bits_per_byte, standard_error


def test_it_is_that_of_documents_drawn_again():
  generator, count = np.random.default_rng(0), 200
  bytes_D = generator.lognormal(6, 1, count).astype(int)
  nats_D = bytes_D * generator.normal(0.7, 0.1, count)
  drawn_RD = generator.integers(0, count, (4000, count))
  ratios_R = nats_D[drawn_RD].sum(axis=1) / bytes_D[drawn_RD].sum(axis=1)
  found = of_bits_per_byte(list(zip(-nats_D, bytes_D, strict=True)))
  np.testing.assert_allclose(found, ratios_R.std() / np.log(2), rtol=0.1)


def test_of_equal_lengths_it_is_that_of_a_mean():
  nats = [-3.0, -5.0, -4.0, -8.0]
  expected = mean_stderr([x / 10 / np.log(2) for x in nats])
  np.testing.assert_allclose(of_bits_per_byte([(x, 10) for x in nats]), expected, rtol=1e-12)


def test_other_metrics_have_the_harnesss():
  assert standard_error(bits_per_byte, 100) is of_bits_per_byte
  assert standard_error(mean, bootstrap_iters=100) is mean_stderr
  assert standard_error(max, 100) is None
