"""Figures 5 to 7 from workdirs that were made by hand: the scored label maps, the same view in all columns."""

import csv
import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest
from figure_checks import legend_labels
from scored_run import ORGANS, make_run
from tiny_dataset import describe, label_map, make, prepare_and_select

from afw_jax import workdir as run_folder
from afw_jax.data import run_record, store
from afw_jax.data.formats import volumes
from afw_jax.data.formats.geometry import Geometry
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.paper import figures, panels, scans, states, tables
from afw_jax.paper.runs import members
from afw_jax.report import choice, label_maps
from configs import paper as config_file

FOCAL, GD, DICE, AFW = 'Focal + Dice', 'CE + GD', 'CE + Dice', 'CE + AFW-Dice'
DSC = {'c0': (0.9, 0.7), 'c1': (0.5, 0.3), 'c2': (0.6, 0.6), 'c3': (0.7, 0.65), 'c4': (0.2, 0.4)}


class Made:
  """Runs of Figures 5 and 7 on a small folder of scans, in files of four orientations."""

  def __init__(self, folder, monkeypatch):
    root = make(folder / 'scans', n=5)
    describe(root, labels={'background': 0, 'liver': 1, 'gall_bladder': 7})
    config = config_file.get_config('figure5,figure7')
    for section in ('synapse', 'abdomenct1k_3d'):
      data = config[section].data
      data.dataset, data.root, data.fit, data.spacing_mm = 'folder', str(root), 'resize', ()
    config.synapse.data.size, config.abdomenct1k_3d.data.size = (32, 36), (8, 32, 32)
    self.five, self.seven = tables.build(config)
    self.members = members([self.five, self.seven], config, str(folder / 'runs'), (4, 5))
    self.done, self.meta, self.cases = set(), {}, {}
    for section, size in (('synapse', (32, 36)), ('abdomenct1k_3d', (8, 32, 32))):
      run = next(m.run for m in self.members if m.part.data == section)
      path = run_folder.store_path(run.config, run.folder)
      index, selection = prepare_and_select(
        'folder', root, path, size=size, spacing_mm=(None,) * 3, fit='resize', progress=False, workers=0
      )
      self.meta[section] = {'data': run_record.data_record(index, selection)}
      self.cases[section] = {case: store.read_case(path, case) for case in DSC}
    monkeypatch.setattr(
      trained, 'read_meta', lambda folder, _: (folder, self.meta[pathlib.Path(folder).name.split('-')[0]])
    )
    monkeypatch.setattr(states, 'is_done', lambda run: run.name in self.done)

  def run(self, table, label):
    (run,) = [m.run for m in self.members if m.table == table.name and m.row.label == label]
    return run

  def fill(self, table, label, shift=0, dsc=None):
    """Makes a run whose label maps are the truth, moved along x."""
    run = self.run(table, label)
    folder = pathlib.Path(run.folder)
    make_run(folder, dsc or DSC)
    for case_id, case in self.cases[run.data].items():
      labels = np.roll(np.asarray(case.arrays['native_label']), shift, axis=2)
      geometry = Geometry.from_json(case.meta['geometry'])
      (folder / 'predictions').mkdir(exist_ok=True)
      volumes.write_label(folder / 'predictions' / f'{case_id}.nii.gz', np.array([0, 1, 7], np.uint8)[labels], geometry)
      path = folder / 'cases' / f'{case_id}.json'
      record = json.loads(path.read_text(encoding='utf-8'))
      record['content_sha256'] = store.content_digest(case.meta)
      for c, organ in enumerate(ORGANS, 1):
        record['scores'][organ]['pred_voxels'] = int((labels == c).sum())
      path.write_text(json.dumps(record), encoding='utf-8')
    self.done.add(run.name)
    return run

  def read(self, table):
    return figures.collect(table, self.members, self.done)


@pytest.fixture
def made(tmp_path, monkeypatch):
  return Made(tmp_path, monkeypatch)


@pytest.fixture
def drawn(monkeypatch):
  kept = []
  monkeypatch.setattr(panels, 'save', lambda figure, path: kept.append(figure) or path)
  return kept


def test_only_the_first_seed_is_shown_and_no_run_is_added(made):
  assert {m.seed for m in made.members} == {4}
  assert [m.run.name for m in made.members if m.table == 'figure5'] == [
    f'synapse-unet-{loss}-seed4' for loss in ('focal_dice', 'ce_gd', 'ce_dice', 'ce_afw')
  ]


def test_scans_by_the_dsc_of_ce_and_dice_with_the_maps_that_were_scored(made):
  made.fill(made.five, FOCAL, shift=2, dsc={case: tuple(1 - v for v in values) for case, values in DSC.items()})
  made.fill(made.five, DICE)
  shown = made.read(made.five)
  assert shown.reference == DICE and shown.seed == 4
  assert [(s.case, s.standing) for s in shown.scans] == [('c4', 'lowest'), ('c2', 'median'), ('c0', 'highest')]
  for scan in shown.scans:
    assert scan.predictions[GD] == scan.predictions[AFW] == 'no run yet'
    np.testing.assert_array_equal(scan.predictions[DICE], scan.truth)  # file ids are classes again
    assert set(np.unique(scan.truth)) == {0, 1, 2} and scan.truth.shape == (6, 32, 36) == scan.image.shape
    assert scan.image.min() >= 0 and scan.image.max() <= 1
    moved = [np.argwhere(one == 1)[:, 2].mean() for one in (scan.predictions[FOCAL], scan.truth)]
    assert moved[0] - moved[1] == pytest.approx(2 * 36 / 48, abs=0.3)
    assert scan.dsc[DICE] == pytest.approx(50 * sum(DSC[scan.case]))


def test_every_column_shows_the_same_slice_window_and_part(made, drawn):
  for label, shift in ((FOCAL, 3), (DICE, 0), (AFW, -2)):
    made.fill(made.five, label, shift)
  shown = made.read(made.five)
  figures.draw('x.png', made.five, shown)
  (figure,) = drawn
  grid = np.reshape(figure.axes, (3, 5))
  assert [axes.get_title() for axes in grid[0]] == ['truth', FOCAL, GD, DICE, AFW]
  assert legend_labels(figure) == ['1 liver', '2 gall bladder'] and '3 of 4 runs' in figure.get_suptitle()
  crops = choice.crops([scan.seen for scan in shown.scans], [scan.spacing_mm[1:] for scan in shown.scans])
  sizes = set()
  for row, scan, (top, bottom, left, right) in zip(grid, shown.scans, crops):
    assert (*row[1].get_ylim()[::-1], *row[1].get_xlim()) == pytest.approx((top, bottom, left, right))
    assert row[0].get_ylabel() == f'{scan.case}\n{scan.standing}, slice {scan.slice}'
    for axes in (row[0], row[1], row[3], row[4]):
      np.testing.assert_array_equal(axes.images[0].get_array(), scan.image[scan.slice])
      assert axes.images[0].get_clim() == (0, 1)
      assert (axes.get_xlim(), axes.get_ylim()) == (row[0].get_xlim(), row[0].get_ylim())
    tints = [axes.images[-1].get_array()[..., 3] > 0 for axes in (row[0], row[1], row[3], row[4])]
    expected = [scan.truth, *(scan.predictions[name] for name in (FOCAL, DICE, AFW))]
    for tint, labels in zip(tints, expected):
      np.testing.assert_array_equal(tint, labels[scan.slice] > 0)
    assert not row[2].images and [text.get_text() for text in row[2].texts] == ['no run yet']
    assert f'DSC {scan.dsc[AFW]:.1f} %' in [text.get_text() for text in row[4].texts]
    (left, right), (bottom, top) = row[0].get_xlim(), row[0].get_ylim()
    sizes.add((round((right - left) * scan.spacing_mm[2], 6), round((bottom - top) * scan.spacing_mm[1], 6)))
    assert row[0].get_aspect() == pytest.approx(scan.spacing_mm[1] / scan.spacing_mm[2])
  assert len(sizes) == 1  # of all rows, in mm


def test_surfaces_are_those_of_the_scan_grid_from_one_camera(made, drawn, monkeypatch):
  seen = []
  monkeypatch.setattr(
    'afw_jax.paper.surface_views.surfaces.render',
    lambda labels, spacing, camera, framed, classes: (
      seen.append((labels, spacing, camera, framed)) or np.ones((9, 9, 3))
    ),
  )
  first, last = 'UNETR, CE + Dice', 'UNETR++, CE + AFW-Dice'
  for label, shift in ((first, 0), (last, 4)):
    made.fill(made.seven, label, shift)
  shown = made.read(made.seven)
  assert shown.reference == first and [(s.case, s.standing) for s in shown.scans] == [('c2', 'median')]
  np.testing.assert_array_equal(shown.scans[0].truth, np.where(label_map(2) == 7, 2, label_map(2)))  # read from LAS
  figures.draw('x.png', made.seven, shown)
  assert len(seen) == 3 and all(one[2] is seen[0][2] and one[3] is seen[0][3] for one in seen)
  assert all(one[1] == (3.0, 1.5, 1.25) and one[0].shape == (6, 40, 48) for one in seen)
  np.testing.assert_array_equal(seen[2][0], np.roll(seen[0][0], 4, axis=2))
  shown.scans[0].predictions[last][:] = 0
  figures.draw('x.png', made.seven, shown)
  assert 'no organ found' in [t.get_text() for t in drawn[1].axes[4].texts]
  assert 'no organ found' not in [t.get_text() for t in drawn[0].axes[4].texts]
  titles = [axes.get_title() for axes in drawn[0].axes]
  assert titles[0] == 'truth' and titles[-1] == 'UNETR++,\nCE + AFW-Dice' and len(titles) == 5
  assert [[t.get_text() for t in axes.texts] for axes in drawn[0].axes[2:4]] == [['no run yet']] * 2


def test_without_the_reference_the_first_row_that_is_there_chooses_and_the_caption_says_so(made):
  made.fill(made.five, AFW)
  shown = made.read(made.five)
  text = figures.as_markdown(made.five, shown)
  assert shown.reference == AFW and f'{DICE} has no run yet, so {AFW} chooses.' in text
  assert '1 of 4 runs. No run yet: Focal + Dice; CE + GD; CE + Dice.' in text


def test_without_a_run_nothing_is_drawn(made, drawn):
  for table in (made.five, made.seven):
    shown = made.read(table)
    figures.draw('x.png', table, shown)
    assert shown.scans == () and [t.get_text() for t in drawn[-1].axes[0].texts] == ['no run yet']
    text = figures.as_markdown(table, shown)
    assert '0 of 4 runs' in text and '![' not in text and '|' not in text
    assert len(list(csv.reader(io.StringIO(figures.as_csv(table, shown))))) == 1


def test_a_deleted_label_map_is_said_to_be_missing_and_another_one_is_refused(made, drawn):
  run = made.fill(made.five, DICE)
  path = pathlib.Path(made.fill(made.five, GD).folder) / 'predictions' / 'c2.nii.gz'
  path.unlink()
  shown = made.read(made.five)
  assert shown.scans[1].predictions[GD] == scans.NO_MAP and not isinstance(shown.scans[0].predictions[GD], str)
  assert f'Not shown: {GD} in c2 (label map is missing).' in figures.as_markdown(made.five, shown)
  rows = list(csv.DictReader(io.StringIO(figures.as_csv(made.five, shown))))
  assert [r['missing'] for r in rows if r['row'] == GD] == ['', 'label map is missing', '']
  figures.draw('x.png', made.five, shown)
  other = pathlib.Path(run.folder) / 'predictions' / 'c1.nii.gz'
  path.write_bytes(other.read_bytes())  # of another scan
  with pytest.raises(InputError, match='c2.*not the label map that was scored'):
    made.read(made.five)
  made.fill(made.five, GD)
  path = path.with_name('c0.nii.gz')
  labels = volumes.read_label(path)
  corrected = labels.array.copy()
  corrected[0, 0, 0] = 7  # by hand
  volumes.write_label(path, corrected, labels.geometry)
  with pytest.raises(InputError, match='c0.*not the label map that was scored'):
    made.read(made.five)


def test_a_scan_that_a_run_did_not_score_is_not_shown_for_it(made):
  made.fill(made.five, DICE)
  gd = made.fill(made.five, GD)
  (pathlib.Path(gd.folder) / 'cases' / 'c4.json').unlink()
  shown = made.read(made.five)
  assert shown.scans[0].predictions[GD] == 'not scored' and GD not in shown.scans[0].dsc


def test_scans_that_were_prepared_anew_from_other_files_are_refused(made):
  run = made.fill(made.five, DICE)
  path = pathlib.Path(run.folder) / 'cases' / 'c0.json'
  path.write_text(
    path.read_text(encoding='utf-8').replace('"content_sha256": "', '"content_sha256": "0'), encoding='utf-8'
  )
  with pytest.raises(InputError, match='scored another scan or truth as c0'):
    made.read(made.five)


def test_ids_of_files_become_classes():
  found = label_maps.as_classes('x', np.array([[0, 7], [300, 1]], np.uint16), [7, 1, 300])
  assert found.dtype == np.uint8 and found.tolist() == [[0, 1], [3, 2]]
  for bad in (2, 301):
    with pytest.raises(InputError, match=f'has the id {bad}'):
      label_maps.as_classes('x', np.array([0, bad], np.uint16), [7, 1, 300])


def test_every_form_of_a_figure(made):
  for label in (FOCAL, GD, DICE, AFW):
    made.fill(made.five, label)
  shown = made.read(made.five)
  text = figures.as_markdown(made.five, shown, phantom=True)
  assert text.startswith('# Figure 5: Losses on Synapse (UNet)\n\n4 of 4 runs.\n\n**Synthetic') and 'seed 4' in text
  assert 'split test, checkpoint best' in text and 'convention strict' in text and '](figure5.png)' in text
  assert '| c4 | lowest | ' in text and ' | 30.00 | 30.00 | 30.00 | 30.00 |' in text
  rows = list(csv.DictReader(io.StringIO(figures.as_csv(made.five, shown))))
  assert len(rows) == 12 and {r['scan'] for r in rows} == {'c4', 'c2', 'c0'} and rows[0]['dsc_percent'] == '30'
  without = dataclasses.replace(shown, scans=tuple(dataclasses.replace(s, has_mm=False) for s in shown.scans))
  assert "patient's left is at the right" in text and 'neither voxel size' not in text
  text = figures.as_markdown(made.five, without)
  assert "patient's left is at the right" not in text and 'neither voxel size nor orientation' in text
  tex = figures.as_tex(made.five, shown)
  assert r'{figure5.png}' in tex and tex.count('{') == tex.count('}') and '*' not in tex
