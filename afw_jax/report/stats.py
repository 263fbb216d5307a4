"""Statistics over cases: mean with a bootstrap confidence interval, and the paired comparison of two runs."""

import math
from typing import NamedTuple

import numpy as np

RESAMPLES = 5000


class Summary(NamedTuple):
  """Mean over cases, sample standard deviation (nan for one case), confidence interval of the mean, number of cases."""

  mean: float
  sd: float
  low: float
  high: float
  n: int


class Paired(NamedTuple):
  """Mean difference, its confidence interval, two-sided p-value of Wilcoxon's test, the least p possible, cases."""

  difference: float
  low: float
  high: float
  p: float
  least_p: float
  n: int


def summarise(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Summary:
  """Mean, standard deviation and percentile bootstrap interval of the mean; nan values are left out.

  Reference: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

  Args:
    values: (N,) one number per case.
    level: nominal coverage of the interval; with few cases the true one is lower (about 0.80 for 4 cases).
    seed: of the resampling; the same values and seed give the same interval.

  Returns:
    Summary; standard deviation and interval are nan with fewer than two cases, or where a value is infinite.
  """
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  n = values.size
  if n == 0:
    return Summary(math.nan, math.nan, math.nan, math.nan, 0)
  mean = float(values.mean())
  if n == 1 or not np.isfinite(values).all():
    return Summary(mean, math.nan, math.nan, math.nan, n)
  low, high = _bootstrap_interval(values, level, seed)
  return Summary(mean, float(values.std(ddof=1)), low, high, n)


def paired(first: np.ndarray, second: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Paired:
  """Compares two runs case by case: second minus first, with a paired bootstrap and Wilcoxon's signed-rank test.

  Reference: F. Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1(6):80-83, 1945.

  Args:
    first, second: (N,) scores of the same cases in the same order; cases with a nan or infinity in either are skipped.
    level, seed: as in `summarise`.

  Returns:
    Paired; p is 1 where all differences are 0, and nan with fewer than two cases. With n cases p cannot fall below
    2 / 2^n (`least_p`): with fewer than six cases no difference reaches 0.05.
  """
  differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
  differences = differences[np.isfinite(differences)]
  n = differences.size
  if n < 2:
    mean = float(differences.mean()) if n else math.nan
    return Paired(mean, math.nan, math.nan, math.nan, 1.0, n)
  from scipy.stats import wilcoxon  # importing it takes half a second, which no other command has to wait for

  low, high = _bootstrap_interval(differences, level, seed)
  p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
  return Paired(float(differences.mean()), low, high, p, 2.0 ** (1 - n), n)


def _bootstrap_interval(values: np.ndarray, level: float, seed: int) -> tuple[float, float]:
  picks = np.random.default_rng(seed).integers(0, values.size, (RESAMPLES, values.size))
  low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
