"""The comparison of losses on real scans that decides which of them is recommended (`configs/paper.py:losses`)."""

import ml_collections

from afw_jax.errors import InputError, did_you_mean
from afw_jax.paper.table import Part, Row, Table, split

DATA, _TITLE = 'chaos_mr', 'CHAOS MR (T2-SPIR)'
_FOLDS = tuple(f'{k}/4' for k in range(1, 5))
_RATES = (0.005, 0.02, 0.05)
_LONGER = 4
_BASELINE = 'ce_dice'
# Name -> (label, changes).
ROWS = {
  'ce_dice': ('CE + Dice (mean)', {'loss.name': 'ce_dice'}),
  'ce_dice_sum': ('CE + sum of Dice', {'loss.name': 'ce_dice', 'loss.ce_dice.reduction': 'sum'}),
  'afw': ('CE + AFW-Dice', {'loss.name': 'ce_afw'}),
  'afw_eq2': ('CE + AFW-Dice, correction of Eq. 2', {'loss.name': 'ce_afw', 'loss.ce_afw.correction': 'eq2'}),
  'equal': ('CE + AFW-Dice, equal weights', {'loss.name': 'ce_afw', 'loss.ce_afw.weights': 'equal'}),
  'anchored': ('CE + AFW-Dice, background anchored', {'loss.name': 'ce_afw', 'loss.ce_afw.background': 'anchored'}),
  'entropic': (
    'CE + entropic weights',
    {'loss.name': 'ce_afw', 'loss.ce_afw.weights': 'entropic', 'loss.ce_afw.gamma': 1.0},
  ),
  'entropic_present': (
    'CE + entropic weights, classes present',
    {'loss.name': 'ce_afw', 'loss.ce_afw.weights': 'entropic_present', 'loss.ce_afw.gamma': 1.0},
  ),
  'square': (
    'CE + sum of Dice, exponent 2',
    {'loss.name': 'ce_afw', 'loss.ce_afw.weights': 'equal', 'loss.ce_afw.gamma': 2.0},
  ),
}
_POOLED = 'Cross-validation in four folds: every scan is scored once for each seed, by the last checkpoint.'


def losses(config: ml_collections.ConfigDict) -> list[Table]:
  """All losses with one seed; learning rates; and, of those that the user names as the best, seeds and more steps.

  Args:
    config: of `configs/paper.py`; paper.rates and paper.best name losses.

  Raises:
    InputError: a name is not one of `ROWS`.
  """
  rates, best = (_named(config, key) for key in ('rates', 'best'))
  tables = [
    _table('losses', 'Losses on real scans', tuple(_row(name, _BASELINE) for name in ROWS)),
    _table(
      'losses_rates',
      'Losses at other learning rates, first fold',
      tuple(
        _row(name, _BASELINE, f'rate {rate:g}', {'optimizer.learning_rate': rate}) for name in rates for rate in _RATES
      ),
      folds=_FOLDS[:1],
    ),
  ]
  if best:
    epochs = {'train.epochs': _LONGER * config[DATA].train.epochs}
    tables += [
      _table(
        'losses_seeds', 'The best losses with three seeds', tuple(_row(n, best[0]) for n in best), seeds=(0, 1, 2)
      ),
      _table(
        'losses_long',
        f'CE + AFW-Dice and the best loss at {_LONGER} times the steps',
        tuple(_row(name, 'afw', f'{_LONGER} x steps', epochs) for name in dict.fromkeys(('afw', best[0]))),
      ),
    ]
  return tables


def _table(name: str, title: str, rows: tuple[Row, ...], *, folds=_FOLDS, seeds=None) -> Table:
  labels = {row.label for row in rows}
  rows = tuple(row if row.against in labels else Row(row.label, row.changes) for row in rows)
  remark = _POOLED if len(folds) > 1 else 'One of four folds: its scans are scored by the last checkpoint.'
  return Table(name, title, (Part(DATA, _TITLE, rows, folds),), seeds, remark=remark)


def _row(name: str, against: str, more: str = '', changes: dict | None = None) -> Row:
  """A row of one loss; the changes come on top of its own."""
  label = lambda loss: f'{ROWS[loss][0]}, {more}' if more else ROWS[loss][0]
  return Row(label(name), {**ROWS[name][1], **(changes or {})}, against=None if name == against else label(against))


def _named(config: ml_collections.ConfigDict, key: str) -> tuple[str, ...]:
  names = split(config.paper[key])
  for name in names:
    if name not in ROWS:
      raise InputError(
        f'paper.{key}', f'{name!r} is not a loss of this study', f'{did_you_mean(name, ROWS)}Use {", ".join(ROWS)}.'
      )
  return names
