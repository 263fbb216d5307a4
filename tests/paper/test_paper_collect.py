"""Tables collected from workdirs that were made by hand: what is there is averaged, what is missing stays missing."""

import csv
import io
import math
import pathlib
import re

import numpy as np
import pytest
from page_reader import Page
from scored_run import CONFIG, SETTINGS, make_run

from afw_jax.errors import InputError
from afw_jax.paper import collect, pictures, render, tables
from afw_jax.paper.runs import members
from afw_jax.paper.table import Part, Row, Table
from afw_jax.report.page import document
from afw_jax.report.stats import paired, summarise
from afw_jax.system import atomic_files
from configs import paper as config_file

CASES = [f'c{i}' for i in range(8)]
PLAIN, BETTER, OTHER = 'CE + Dice', 'CE + AFW-Dice', 'CE + GD'


def scores(base, step=0.0, cases=CASES):
  """Case -> DSC of two organs, whose mean is base + step * number of the case."""
  return {case: (base + step * int(case[1:]) + 0.1, base + step * int(case[1:]) - 0.1) for case in cases}


@pytest.fixture
def table1(tmp_path):
  """(table, members with seeds 0 and 1) of Table 1."""
  config = config_file.get_config('table1')
  (table,) = tables.build(config)
  return table, members([table], config, str(tmp_path), (0, 1))


def fill(found, label, seed, dsc, *, fold='', **extra):
  """Makes the scores of a run; returns its name."""
  (run,) = [m.run for m in found if (m.row.label, m.seed, m.fold) == (label, seed, fold)]
  make_run(pathlib.Path(run.folder), dsc, config=CONFIG, **extra)
  return run.name


def lines_of(table, found, done):
  (part,) = collect.collect(table, found, done)
  return part, {line.row.label: line for line in part.lines}


def test_means_differences_and_what_is_missing(table1):
  table, found = table1
  done = {
    fill(found, PLAIN, 0, scores(0.5, 0.01)),
    fill(found, PLAIN, 1, scores(0.6, 0.01)),
    fill(found, BETTER, 0, scores(0.7, 0.02)),
  }
  fill(found, OTHER, 0, scores(0.1))  # scored, but not done: still training, for instance
  part, lines = lines_of(table, found, done)
  assert part.organs == ('liver', 'gall_bladder') and (part.convention, part.unit, part.cases) == ('strict', 'mm', 8)
  plain, better = lines[PLAIN], lines[BETTER]
  assert (plain.done, plain.planned, plain.seeds) == (2, 2, 2) and (better.done, better.seeds) == (1, 1)
  assert plain.cells['dsc'].mean == pytest.approx(58.5) and plain.cells['dsc'].sd == pytest.approx(10 / math.sqrt(2))
  assert plain.cells['liver'].mean == pytest.approx(68.5) and plain.cells['dsc'].n == 8
  assert plain.cells['dsc'].low < 50 + 3.5 + 1  # both seeds of a resample may be the lower one
  values = 70 + 2 * np.arange(8.0)
  assert better.cells['dsc'][2:] == pytest.approx(summarise(values)[2:]) and math.isnan(better.cells['dsc'].sd)
  # Paired by case, over the seeds that both have: seed 0 alone.
  expected = paired(50 + np.arange(8.0), values)
  assert better.difference == pytest.approx(expected) and better.difference.difference == pytest.approx(23.5)
  assert better.p == pytest.approx(2 / 2**8)  # one comparison: Holm's procedure changes nothing
  for label in ('Focal + Dice', OTHER):
    assert lines[label].cells == {} and lines[label].done == 0 and lines[label].difference is None


def test_holm_over_all_comparisons_of_a_table(table1):
  table, found = table1
  done = {fill(found, label, 0, scores(base, 0.01)) for label, base in ((PLAIN, 0.5), (BETTER, 0.6), (OTHER, 0.4))}
  _, lines = lines_of(table, found, done)
  assert lines[BETTER].p == lines[OTHER].p == pytest.approx(2 * 2 / 2**8)


def write_splits(found, label, fold, held, cases=CASES):
  (run,) = [m.run for m in found if (m.row.label, m.fold) == (label, fold)]
  splits = {'train': [case for case in cases if case not in held], 'val': held, 'test': []}
  atomic_files.write_json(pathlib.Path(run.folder) / 'splits.json', splits)


def fold_runs(tmp_path):
  """A table of two rows with two folds each."""
  config = config_file.get_config('table1,figure3')
  rows = (
    Row('a', {'loss.name': 'ce_dice'}),
    Row('b', {'loss.name': 'ce_afw'}, against='a'),
  )
  table = Table('t', 'T', (Part('synapse', 'D', rows, ('1/2', '2/2')),))
  return table, members([table], config, str(tmp_path), (0,))


def test_folds_are_pooled_and_a_missing_one_is_named(tmp_path):
  table, found = fold_runs(tmp_path)
  first, second = CASES[:3], CASES[3:]
  done = {fill(found, 'a', 0, scores(0.5, 0.01, first), fold='1/2', split='val', training_split=None)}
  part, lines = lines_of(table, found, done)
  assert lines['a'].missing_folds == ('2/2',) and lines['a'].cells['dsc'].n == 3 and lines['b'].missing_folds == ()
  assert 'a (lacks fold 2/2)' in render.as_markdown(table, [part])
  done |= {
    fill(found, 'a', 0, scores(0.5, 0.01, second), fold='2/2', split='val', training_split=None),
    fill(found, 'b', 0, scores(0.6, 0.01, second), fold='2/2', split='val', training_split=None),
  }
  write_splits(found, 'a', '1/2', first)
  write_splits(found, 'a', '2/2', second)
  part, lines = lines_of(table, found, done)
  assert 'b (lacks fold 1/2, 5 of 8 cases)' in render.as_markdown(table, [part])
  assert lines['a'].missing_folds == () and lines['a'].cells['dsc'].n == 8 and lines['a'].done == 2
  assert lines['a'].cells['dsc'].mean == pytest.approx(53.5)  # each case once
  assert lines['b'].difference.n == 5 and lines['b'].difference.difference == pytest.approx(10)  # cases of both
  fill(found, 'b', 0, scores(0.6, 0.01, second), fold='1/2', split='val', training_split=None)
  with pytest.raises(InputError, match='c3.*as another fold'):
    collect.collect(table, found, {m.run.name for m in found})


def test_folds_of_a_data_set_that_has_grown_meanwhile_are_not_pooled(tmp_path):
  """The case that moved into a fold which was trained before would be held out by none."""
  table, found = fold_runs(tmp_path)
  done = {
    fill(found, 'a', 0, scores(0.5, 0.01, CASES[:3]), fold='1/2', split='val', training_split=None),
    fill(found, 'a', 0, scores(0.5, 0.01, CASES[4:]), fold='2/2', split='val', training_split=None),
  }
  write_splits(found, 'a', '1/2', CASES[:3], CASES[:7])
  write_splits(found, 'a', '2/2', CASES[4:])
  with pytest.raises(InputError, match='has other cases than .*: c7'):
    collect.collect(table, found, done)
  write_splits(found, 'a', '1/2', CASES[:3])
  with pytest.raises(InputError, match='no fold holds out c3'):
    collect.collect(table, found, done)


def test_a_table_of_one_fold_alone_has_the_cases_of_that_fold(tmp_path):
  config = config_file.get_config('table1,figure3')
  table = Table('t', 'T', (Part('synapse', 'D', (Row('a', {'loss.name': 'ce_dice'}),), ('1/4',)),))
  found = members([table], config, str(tmp_path), (0,))
  done = {fill(found, 'a', 0, scores(0.5, 0.01, CASES[:2]), fold='1/4', split='val', training_split=None)}
  write_splits(found, 'a', '1/4', CASES[:2])
  _, lines = lines_of(table, found, done)
  assert lines['a'].cells['dsc'].n == 2 and lines['a'].missing_folds == ()


def test_a_row_of_fewer_cases_than_the_others_says_so(table1):
  table, found = table1
  done = {fill(found, PLAIN, 0, scores(0.5)), fill(found, BETTER, 0, scores(0.7, cases=CASES[:7]))}
  filled = collect.collect(table, found, done)
  assert '| CE + AFW-Dice (7 of 8 cases) | 70.00' in (text := render.as_markdown(table, filled))
  assert '| CE + Dice | 50.00' in text and '{CE + AFW-Dice (7 of 8 cases)} &' in render.as_tex(table, filled)


@pytest.mark.parametrize('odd, says', [
  (dict(convention='monai'), 'convention'), (dict(split='val', training_split=None), 'split'),
  (dict(settings=SETTINGS | {'checkpoint': 'last'}), 'checkpoint'), (dict(spacing_mm=[5, 1, 1]), 'spacing'),
])  # fmt: skip
def test_runs_that_were_not_scored_alike_do_not_share_a_table(table1, odd, says):
  table, found = table1
  done = {fill(found, PLAIN, 0, scores(0.5)), fill(found, BETTER, 0, scores(0.5), **odd)}
  with pytest.raises(InputError, match=says):
    collect.collect(table, found, done)


def test_seeds_of_one_row_that_were_not_scored_alike(table1):
  table, found = table1
  done = {fill(found, PLAIN, 0, scores(0.5)), fill(found, PLAIN, 1, scores(0.5), convention='monai')}
  with pytest.raises(InputError, match='convention'):
    collect.collect(table, found, done)


def test_rows_are_compared_over_the_seeds_that_both_have(table1):
  table, found = table1
  done = {fill(found, PLAIN, 0, scores(0.5)), fill(found, BETTER, 1, scores(0.9))}
  _, lines = lines_of(table, found, done)
  assert lines[BETTER].difference is None and lines[BETTER].done == 1
  done.add(fill(found, BETTER, 0, scores(0.7)))
  _, lines = lines_of(table, found, done)
  assert lines[BETTER].difference.difference == pytest.approx(20) and lines[BETTER].cells['dsc'].mean == pytest.approx(
    80
  )


def test_an_empty_table_has_dashes_and_the_published_numbers(table1):
  table, found = table1
  filled = collect.collect(table, found, set())
  text = render.as_markdown(table, filled)
  assert text.startswith('# Table 1: Losses on Synapse (UNet)\n\n0 of 8 runs.')
  assert '| CE + AFW-Dice | - (79.47) | - (28.41) | - | - | - | 0 of 2 |' in text
  assert '- (64.73)' in text and "in parentheses the paper's number" in text and 'nan' not in text
  rows = list(csv.DictReader(io.StringIO(render.as_csv(table, filled))))
  assert len(rows) == 4 * (3 + 8) and {row['mean'] for row in rows} == {''}
  assert {row['published'] for row in rows if row['row'] == PLAIN and row['column'] == 'hd95'} == {'33.31'}


def test_every_form_says_convention_units_and_numbers(table1):
  table, found = table1
  done = {fill(found, PLAIN, s, scores(0.5 + 0.1 * s, 0.01)) for s in (0, 1)} | {fill(found, BETTER, 0, scores(0.7))}
  filled = collect.collect(table, found, done)
  text = render.as_markdown(table, filled)
  assert '3 of 8 runs.' in text and '**strict**' in text and 'HD95 (mm)' in text and "Holm's procedure" in text
  (row,) = re.findall(r'^\| CE \+ Dice \| (.*?) \|', text, re.M)[:1]
  assert re.fullmatch(r'58\.50 ± 7\.07 \[\d\d\.\d\d, \d\d\.\d\d\] \(77\.46\)', row)
  assert re.search(r'\+\d\d\.\d\d \[.*\] to CE \+ Dice \| 0\.008 \| 1 of 2', text)
  page = Page(document.page(render.as_blocks(table, filled)))  # the same cells in the same order
  lines = [line for line in text.splitlines() if line.startswith('| ') and '---' not in line]
  assert [f'| {" | ".join(row)} |' for shown in page.tables for row in shown] == lines
  assert page.headings[0] == 'Table 1: Losses on Synapse (UNet)' and '3 of 8 runs.' in page.text
  rows = list(csv.DictReader(io.StringIO(render.as_csv(table, filled))))
  one = next(r for r in rows if r['row'] == PLAIN and r['column'] == 'dsc')
  assert float(one['mean']) == pytest.approx(58.5) and one['unit'] == 'percent' and one['convention'] == 'strict'
  assert (one['cases'], one['seeds'], one['runs'], one['planned_runs']) == ('8', '2', '2', '2')
  tex = render.as_tex(table, filled)
  assert tex.count(r'\toprule') == 2 == tex.count(r'\bottomrule') and r'$\pm$' in tex and '±' not in tex
  for line in tex.splitlines():
    if line.endswith(r'\\'):
      assert line.count('&') - line.count(r'\&') in (2, 6)  # two organs, or seven columns
  assert not re.search(r'(?<!\\)[%#_](?!$| needs)', tex.replace('{!}{%', '')) and tex.count('{') == tex.count('}')
  phantom = render.as_markdown(table, filled, phantom=True)
  assert (
    'numbers mean nothing' in phantom and '77.46' not in phantom and 'the paper' not in phantom.lower().split('##')[1]
  )


def test_pictures_of_partial_and_empty_tables(tmp_path, table1, monkeypatch):
  table, found = table1
  shown = []
  monkeypatch.setattr(pictures, 'save', lambda figure, path: shown.append(figure) or path)
  done = {fill(found, PLAIN, 0, scores(0.5)), fill(found, BETTER, 0, scores(0.7, 0.01))}
  for names in (done, set()):
    pictures.draw('x.png', table, collect.collect(table, found, names))
  some, none = ([line.get_xdata() for line in figure.axes[0].lines] for figure in shown)
  assert [x[0] for x in some if len(x) == 1] == pytest.approx([77.92, 75.60, 50, 77.46, 73.5, 79.47])
  assert [x[0] for x in none] == pytest.approx([77.92, 75.60, 77.46, 79.47])  # the published ones alone
  assert 'CE + AFW-Dice  (1/2)' in [label.get_text() for label in shown[0].axes[0].get_yticklabels()]
  assert '2 of 8 runs' in shown[0].get_suptitle()


def test_the_picture_of_a_figure_is_a_line_through_what_is_there(tmp_path, monkeypatch):
  (table,) = tables.build(config := config_file.get_config('figure3'))
  found = members([table], config, str(tmp_path), (0,))
  done = {fill(found, f'gamma = {g:g}', 0, scores(0.5 + g / 10)) for g in (0.0, 0.25, 1.0)}
  shown = []
  monkeypatch.setattr(pictures, 'save', lambda figure, path: shown.append(figure) or path)
  pictures.draw('x.png', table, collect.collect(table, found, done))
  line = shown[0].axes[0].lines[0]
  assert list(line.get_xdata()) == [0, 0.25, 1] and line.get_ydata() == pytest.approx([50, 52.5, 60])
  assert list(shown[0].axes[0].get_xticks()) == [0, 0.25, 0.5, 0.75, 1]
