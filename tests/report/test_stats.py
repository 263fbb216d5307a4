import math
import statistics as stdlib

import numpy as np
import pytest

from afw_jax.report.stats import holm, paired, summarise, summarise_seeds


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


def test_an_interval_is_computed_once_for_all_tables_of_a_report(monkeypatch):
  values = np.random.default_rng(1).random(9)
  first = summarise(values, seed=11)
  monkeypatch.setattr(np.random, 'default_rng', None)
  assert summarise(values.copy(), seed=11) == first


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


def test_holm_by_hand():
  assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 4 x 0.005, 3 x 0.01, 2 x 0.03
  assert holm([0.2]) == [0.2] and holm([]) == []
  assert holm([0.9, 0.8]) == [1, 1]
  corrected = holm([0.02, math.nan, 0.02])  # a comparison that was not made does not count
  assert corrected[0] == corrected[2] == pytest.approx(0.04) and math.isnan(corrected[1])


def test_seeds_and_cases():
  values = np.array([[1, 2, 3, 6], [3, 4, 5, 8]], float)
  s = summarise_seeds(values)
  assert s.mean == pytest.approx(4) and s.n == 4 and s.sd == pytest.approx(math.sqrt(2))  # of the means 3 and 5
  cases_only = summarise(values.mean(0))
  assert s.low < cases_only.low < cases_only.high < s.high  # wider: the seeds differ, too
  assert summarise_seeds(values) == s
  alike = summarise_seeds(np.stack([values[0]] * 3))
  assert alike.sd == 0 and alike.low == pytest.approx(summarise(values[0]).low, abs=0.3)
  constant = summarise_seeds(
    np.array([[2.0] * 5, [4.0] * 5])
  )  # the cases do not differ: the draws of two seeds are left
  assert (constant.mean, constant.low, constant.high) == (3, 2, 4)


def test_one_seed_is_the_bootstrap_over_cases():
  values = np.array([0.5, 0.6, math.nan, 0.9])
  one, plain = summarise_seeds(values[None]), summarise(values)
  assert (one.mean, one.low, one.high, one.n) == (plain.mean, plain.low, plain.high, 3) and math.isnan(one.sd)


def test_missing_cells_are_left_out():
  s = summarise_seeds(np.array([[1, math.nan, 3], [3, math.nan, math.nan]]))
  assert s.n == 2 and s.mean == pytest.approx(2.5) and s.sd == pytest.approx(math.sqrt(0.5))  # cases 2, 3; seeds 2, 3
  assert 1 <= s.low < s.high <= 3
  assert summarise_seeds(np.full((2, 3), math.nan)).n == 0
  assert (
    math.isnan(summarise_seeds(np.array([[1.0], [3.0]])).low) and summarise_seeds(np.array([[1.0], [3.0]])).mean == 2
  )
  assert math.isnan(summarise_seeds(np.array([[1.0, math.inf], [3.0, 1.0]])).low)
