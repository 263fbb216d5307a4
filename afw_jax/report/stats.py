"""Statistics over cases and trainings: means with bootstrap intervals, paired comparisons, several of them."""

import functools
import math
from collections.abc import Sequence
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


def summarise_seeds(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Summary:
  """Mean over the cases of several trainings, its spread over these, and an interval for both sources of chance.

  The interval is that of a bootstrap in two levels: each resample draws trainings, and draws cases, which are the same
  for all trainings (crossed, as in A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2):386-411,
  2007). With one training it is that of `summarise`.

  Args:
    values: (S, N) one row for each training (seed), one column for each case; nan where a case has no value.
    level, seed: as in `summarise`.

  Returns:
    Summary of the mean over cases, each averaged over trainings first; `sd` is the sample standard deviation of the
    means of the trainings, nan for one; `n` is the number of cases.
  """
  values = np.atleast_2d(np.asarray(values, np.float64))
  values = values[:, ~np.isnan(values).all(axis=0)]
  values = values[~np.isnan(values).all(axis=1)]
  trainings, n = values.shape
  if trainings < 2 or n == 0:
    return summarise(values.ravel(), level=level, seed=seed)._replace(sd=math.nan)
  if not np.isfinite(values[~np.isnan(values)]).all():
    return Summary(float(np.nanmean(values)), math.nan, math.nan, math.nan, n)
  sd = float(np.nanmean(values, axis=1).std(ddof=1))
  mean = float(np.nanmean(values, axis=0).mean())
  if n == 1:
    return Summary(mean, sd, math.nan, math.nan, n)
  rng = np.random.default_rng(seed)
  # How often each training and each case is drawn: with these, a resample is a weighted mean.
  rows = rng.multinomial(trainings, np.full(trainings, 1 / trainings), RESAMPLES)
  columns = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
  known, filled = ~np.isnan(values), np.nan_to_num(values)
  weight = rows @ known
  with np.errstate(invalid='ignore'):
    by_case = np.where(weight > 0, (rows @ filled) / weight, 0)
    means = (by_case * columns).sum(1) / (columns * (weight > 0)).sum(1)
  low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
  return Summary(mean, sd, float(low), float(high), n)


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values corrected for several comparisons by Holm's step-down procedure, in the order given.

  Reference: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics
  6(2):65-70, 1979.

  Args:
    p_values: nan for a comparison that could not be made; it is not counted, and stays nan.
  """
  corrected = [math.nan] * len(p_values)
  made = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
  highest = 0.0
  for rank, (p, i) in enumerate(made):
    highest = max(highest, min(1.0, (len(made) - rank) * p))
    corrected[i] = highest
  return corrected


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
  return _interval_of(values.tobytes(), level, seed)


@functools.lru_cache(1 << 12)  # all tables of a report have the same intervals, which take most of its time
def _interval_of(numbers: bytes, level: float, seed: int) -> tuple[float, float]:
  values = np.frombuffer(numbers, np.float64)
  picks = np.random.default_rng(seed).integers(0, values.size, (RESAMPLES, values.size))
  low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
