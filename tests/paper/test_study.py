"""The comparison of losses: its folds, learning rates, and what is trained once the best losses are named."""

import pytest

from afw_jax.errors import InputError
from afw_jax.paper import tables
from afw_jax.paper.runs import distinct, members
from configs import paper as config_file


def made(**changes):
  config = config_file.get_config('losses')
  config.update_from_flattened_dict(changes)
  found = tables.build(config)
  return {table.name: table for table in found}, members(found, config, 'w', (0,))


def test_nine_losses_in_four_folds_and_four_of_them_at_other_rates():
  by_name, found = made()
  assert set(by_name) == {'losses', 'losses_rates'} and len(distinct(found)) == 9 * 4 + 4 * 2
  configs = [m.run.config for m in found if m.table == 'losses']
  assert {c.data.fold for c in configs} == {'1/4', '2/4', '3/4', '4/4'}
  assert {(c.optimizer.learning_rate, c.eval.checkpoint, c.eval.split) for c in configs} == {(0.02, 'last', 'val')}
  rates = [m.run.config for m in found if m.table == 'losses_rates']
  assert {c.data.fold for c in rates} == {'1/4'} and len(rates) == 12
  assert sorted({c.optimizer.learning_rate for c in rates}) == [0.005, 0.02, 0.05]
  for row in by_name['losses_rates'].parts[0].rows:  # each is compared with CE + Dice at its own rate
    assert row.against is None or row.against.split('rate')[1] == row.label.split('rate')[1]


def test_the_best_losses_get_more_seeds_and_the_first_more_steps():
  by_name, found = made(**{'paper.best': 'entropic,square', 'chaos_mr.train.epochs': 5})
  assert len(distinct(found)) == 44 + 2 * 2 * 4 + 2 * 4
  seeds = [(m.seed, m.run.config.loss.ce_afw.weights) for m in found if m.table == 'losses_seeds']
  assert {seed for seed, _ in seeds} == {0, 1, 2} and {weights for _, weights in seeds} == {'entropic', 'equal'}
  longer = [m.run.config for m in found if m.table == 'losses_long']
  assert {c.train.epochs for c in longer} == {20} and {c.seed for c in longer} == {0} and len(longer) == 8
  assert {c.loss.ce_afw.weights for c in longer} == {'learned', 'entropic'}
  assert [row.against for row in by_name['losses_long'].parts[0].rows] == [None, 'CE + AFW-Dice, 4 x steps']


@pytest.mark.parametrize('changes, says', [
  ({'paper.best': 'entropik'}, "'entropic'"), ({'paper.rates': 'dice'}, 'paper.rates'),
  ({'paper.folds': 1}, 'paper.folds'),
])  # fmt: skip
def test_wrong_names(changes, says):
  with pytest.raises(InputError, match=says):
    made(**changes)
