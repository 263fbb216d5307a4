"""Which runs make the tables of the paper, how they are named and shared, and what was published of them."""

import numpy as np
import pytest

from afw_jax.errors import InputError
from afw_jax.paper import results, tables
from afw_jax.paper.runs import distinct, members
from configs import paper as config_file

SIX = ','.join(f'table{n}' for n in range(1, 7))


def found(variant, seeds=(0,), **changes):
  config = config_file.get_config(variant)
  config.update_from_flattened_dict(changes)
  return members(tables.build(config), config, 'runs/paper', seeds)


def names(variant, *arguments, **changes):
  return [run.name for run in distinct(found(variant, *arguments, **changes))]


@pytest.mark.parametrize('more', ['', ',phantom'])
def test_the_tables_need_28_runs_a_seed_and_the_two_figures_8_more(more):
  assert len(names(SIX + more)) == 28 and len(names(SIX + more, (0, 1, 2))) == 84
  assert len(names(f'figure3,figure4{more}')) == 5 + 3  # no organ is the exponent 1, every organ the default
  assert len(names(f'all{more}')) == 36
  assert len(found(SIX)) == 32  # the default loss stands in three tables for each of two data sets


def test_the_figures_of_scans_add_no_runs_to_the_tables_that_they_show():
  for figure, table in (('figure5', 'table1'), ('figure6', 'table2'), ('figure7', 'table6')):
    assert names(figure) == names(table) == names(f'{table},{figure}')
    assert names(figure, (3, 4)) == names(table, (3,))  # they show the first seed
  assert {table.picture for table in tables.build(config_file.get_config('all'))} == {'', 'overlays', 'surfaces'}


def test_tables_share_the_default_run():
  in_tables = {member.table for member in found(f'{SIX},figure3') if member.run.name == 'synapse-unet-ce_afw-seed0'}
  assert in_tables == {'table1', 'table3', 'table4'}
  by_name = {m.run.name: m.run.config for m in found('table1,table3', (0, 5))}
  assert by_name['synapse-unet-ce_dice-seed5'].loss.name == 'ce_dice'  # and not that of the run that was made last
  assert by_name['synapse-unet-ce_dice-seed5'].seed == 5 and by_name['synapse-unet-ce_afw-seed0'].seed == 0


def test_names_say_what_a_run_is():
  assert names('table3') == [
    'synapse-unet-ce_afw-learned_weights=False-seed0',
    'synapse-unet-ce_afw-seed0',
    'abdomenct1k-unet-ce_afw-learned_weights=False-seed0',
    'abdomenct1k-unet-ce_afw-seed0',
  ]
  assert 'chaos-unet-ce_afw-rare=pancreas+kidney-seed0' in names('figure4')
  assert 'abdomenct1k_3d-unetrpp-ce_dice-seed2' in names('table6', (2,))
  pretrained = names('table5', **{'paper.pretrained.transunet': '/x/R50.npz'})
  assert sum('pretrained' in name for name in pretrained) == 4 and not [name for name in pretrained if '/' in name]


def test_the_first_seed_comes_first():
  seeds = [run.config.seed for run in distinct(found('table1,table2', (3, 1)))]
  assert seeds == sorted(seeds)


def test_options_of_a_recipe_hold_for_all_of_its_runs_and_for_no_other():
  made = found('table3', **{'synapse.train.epochs': 7, 'synapse.data.root': '~/scans'})
  for member in made:
    assert (member.run.config.train.epochs == 7) == (member.part.data == 'synapse')
    assert '~' not in member.run.config.data.root


@pytest.mark.parametrize(
  'variant, says', [('tabel1', "'table1'"), ('table1,phantoms', 'phantom'), ('all,x', 'figure4')]
)
def test_unknown_variants(variant, says):
  with pytest.raises(InputError, match=says):
    config_file.get_config(variant)


def test_published_numbers_fit_each_other():
  """The mean DSC of each row is the mean of its organs, as the paper rounds them; shared runs have one result."""
  rows = [
    *results.TABLE1.values(),
    *results.TABLE2.values(),
    *(row for pair in results.TABLE6.values() for row in pair),
  ]
  for row in rows:
    organs = [value for name, value in row.items() if name not in ('dsc', 'hd95')]
    printed = 78.00 if row == results.TABLE1['focal_dice'] else row['dsc']  # the one row that does not fit
    assert len(organs) in (4, 8) and np.mean(organs) == pytest.approx(printed, abs=0.0075)
  for table, data in ((results.TABLE1, 'synapse'), (results.TABLE2, 'abdomenct1k')):
    for other in (results.TABLE3, results.TABLE4):
      assert other[data][1] == {name: table['ce_afw'][name] for name in ('dsc', 'hd95')}


def test_rows_are_compared_with_a_row_of_their_own_part():
  for table in tables.build(config_file.get_config('all')):
    for part in table.parts:
      labels = [row.label for row in part.rows]
      assert len(set(labels)) == len(labels)
      assert all(row.against in labels and row.against != row.label for row in part.rows if row.against)
      assert any(row.against for row in part.rows) and not all(row.against for row in part.rows)


@pytest.mark.parametrize('focus', ['pancreas,kidney', '', 'pancreas,kidney,spleen,liver,liver', 'pancreas,kidney,x'])
def test_the_organs_of_figure_4_are_all_of_the_data_set(focus):
  """The last row is called 'every organ': with other organs its place on the axis would be wrong."""
  with pytest.raises(InputError, match='paper.focus: .*the data set has liver, kidney, spleen, pancreas'):
    found('figure4', **{'paper.focus': focus})
