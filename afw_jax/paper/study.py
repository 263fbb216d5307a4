"""The comparison of losses on real scans that decides which of them is recommended (`configs/paper.py:losses`)."""

import ml_collections

from afw_jax.errors import InputError, did_you_mean
from afw_jax.paper.table import Part, Row, Table, split

DATA, _TITLE = 'chaos_mr', 'CHAOS MR (T2-SPIR)'
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
_POOLED = 'Cross-validation in {} folds: every scan is scored once for each seed, by the last checkpoint.'


def losses(config: ml_collections.ConfigDict) -> list[Table]:
  """All losses with one seed; learning rates; and, of those that the user names as the best, seeds and more steps.

  Args:
    config: of `configs/paper.py`; paper.rates and paper.best name losses.

  Raises:
    InputError: a name is not one of `ROWS`.
  """
  rates, best = (_named(config, key) for key in ('rates', 'best'))
  count = config.paper.folds
  if count < 2:
    raise InputError('paper.folds', f'is {count}', 'Give 2 or more.')
  folds = tuple(f'{k}/{count}' for k in range(1, count + 1))
  at_rates = tuple(
    _row(name, _BASELINE, f'rate {rate:g}', {'optimizer.learning_rate': rate}) for rate in _RATES for name in rates
  )
  tables = [
    _table('losses', 'Losses on real scans', tuple(_row(name, _BASELINE) for name in ROWS), folds),
    _table('losses_rates', 'Losses at other learning rates', at_rates, folds[:1]),
  ]
  if not best:
    return tables
  longer = {'train.epochs': _LONGER * config[DATA].train.epochs}
  pair = tuple(_row(name, 'afw', f'{_LONGER} x steps', longer) for name in dict.fromkeys(('afw', best[0])))
  return [
    *tables,
    _table('losses_seeds', 'The best losses with three seeds', tuple(_row(n, best[0]) for n in best), folds, (0, 1, 2)),
    _table('losses_long', f'CE + AFW-Dice and the best loss at {_LONGER} times the steps', pair, folds),
  ]


def _table(name: str, title: str, rows: tuple[Row, ...], folds: tuple[str, ...], seeds=None) -> Table:
  labels = {row.label for row in rows}
  rows = tuple(row if row.against in labels else Row(row.label, row.changes) for row in rows)
  one = f'Fold {folds[0]} only: its scans are scored by the last checkpoint.'
  remark = _POOLED.format(len(folds)) if len(folds) > 1 else one
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
