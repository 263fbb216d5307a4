import math
import statistics as stdlib

import numpy as np
import pytest

from afw_jax.report.stats import paired, summarise


def test_summarise():
  s = summarise([1, 2, math.nan, 6])
  assert (s.mean, s.n) == (3, 3) and s.sd == pytest.approx(stdlib.stdev([1, 2, 6])) and 1 <= s.low < 3 < s.high <= 6
  assert summarise([1, 2, 6]) == s
  many = np.random.default_rng(0).random(20)
  assert summarise(many) == summarise(many, seed=0) != summarise(many, seed=1)
  assert summarise([4, 4, 4])[:4] == (4, 0, 4, 4)
  one = summarise([5])
  assert (one.mean, one.n) == (5, 1) and math.isnan(one.sd) and math.isnan(one.low)
  assert summarise([]).n == 0 and math.isnan(summarise([math.nan]).mean)
  assert summarise([1, math.inf]).mean == math.inf
  narrow, wide = summarise([1, 2, 6, 9], level=0.5), summarise([1, 2, 6, 9], level=0.99)
  assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize('n, least, most', [(4, 0.68, 0.88), (25, 0.89, 0.98)])
def test_interval_covers_as_often_as_the_report_says(n, least, most):
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(300):
    s = summarise(rng.normal(3, 2, n), seed=seed)
    hits += s.low <= 3 <= s.high
  assert least < hits / 300 < most


def test_paired():
  first = np.array([0.5, 0.6, 0.7, 0.8, 0.9, math.nan])
  p = paired(first, first + np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0]))
  assert p.difference == pytest.approx(0.03) and p.n == 5 and 0.01 <= p.low < 0.03 < p.high <= 0.05
  assert p.p == pytest.approx(2 / 2**5) == p.least_p  # every case better: the least p that five cases can give
  back = paired(first + np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0]), first)
  assert back.difference == pytest.approx(-p.difference) and back.p == p.p
  assert paired(first, first)[:4] == (0, 0, 0, 1)
  lone = paired([1], [3])
  assert lone.difference == 2 and math.isnan(lone.p) and lone.n == 1
