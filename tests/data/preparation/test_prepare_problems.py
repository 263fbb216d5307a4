"""Problems in a data set: all are reported at once, before anything of the store changes."""

import shutil

import numpy as np
import pytest
from tiny_dataset import (
  SHAPE,
  SMALL,
  contents,
  damage,
  describe,
  geometry,
  label_map,
  make,
  prepare_and_select,
  prepare_store,
  scan,
)

from afw_jax.data import store
from afw_jax.data.formats import volumes
from afw_jax.data.preparation import load_case
from afw_jax.errors import InputError, InputErrors


def problems_of(*args, **kwargs):
  with pytest.raises((InputError, InputErrors)) as e:
    prepare_store(*args, **{**SMALL, **kwargs})
  assert not (args[2] / 'dataset.json').exists() and not (args[2] / 'cases').exists()
  found = e.value.errors if isinstance(e.value, InputErrors) else [e.value]
  assert all('\n' not in str(f) for f in found)
  return [str(f) for f in found]


def test_every_problem_is_reported_at_once_and_good_cases_are_kept(tmp_path, monkeypatch):
  root = make(tmp_path / 'raw', n=7)
  damage(root)
  found = problems_of('folder', root, tmp_path / 's')
  assert len(found) == 5
  for name, word in (
    ('labels/c0', 'shape'),
    ('labels/c1', '9 ('),
    ('labels/c2', 'empty'),
    ('labels/c3', 'affine'),
    ('images/c4', ''),
  ):
    assert any(name in p and word in p for p in found), (name, word)
  with pytest.raises(InputError):
    store.read_index(tmp_path / 's')
  make(root, n=5)
  read, reads = load_case.load_and_validate, []
  monkeypatch.setattr(
    load_case, 'load_and_validate', lambda case, *a, **k: reads.append(case.id) or read(case, *a, **k)
  )
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  assert sorted(reads) == ['c0', 'c1', 'c2', 'c3', 'c4']  # c5 and c6 were fine


def test_a_label_map_slightly_beside_its_scan_is_noted(tmp_path):
  root = make(tmp_path / 'raw')
  for i, off in enumerate((0.01, 0.06)):  # mm, of 1.25 mm; the origin of the others is -20 mm
    path = root / 'labels' / f'c{i}.nii.gz'
    volumes.write_label(path, label_map(i), geometry(axes=('RAS', 'LPS')[i], origin=(-20 + off, 30, 5)))
  _, selection = prepare_and_select('folder', root, tmp_path / 's', **SMALL)
  assert [note for note in selection.notes if 'beside' in note] == [
    'c1: by its affine the label map lies up to 0.048 voxels (0.06 mm) beside the scan'
  ]


def test_a_problem_leaves_an_older_store_as_it_was(tmp_path):
  root = make(tmp_path / 'raw')
  prepare_store('folder', root, tmp_path / 's', **SMALL)
  before = contents(tmp_path / 's')
  volumes.write_label(root / 'labels' / 'c1.nii.gz', np.zeros(SHAPE, np.uint8), geometry(axes='LPS'))
  with pytest.raises(InputError, match='c1.nii.gz: is empty'):
    prepare_store('folder', root, tmp_path / 's', order='linear', **SMALL)
  after = contents(tmp_path / 's')
  assert before == {k: v for k, v in after.items() if not k.startswith('.staging')}


def test_the_same_scan_twice(tmp_path):
  root = make(tmp_path / 'raw')
  shutil.copy(root / 'images' / 'c1.nii.gz', root / 'images' / 'd.nii.gz')
  shutil.copy(root / 'labels' / 'c1.nii.gz', root / 'labels' / 'd.nii.gz')
  (found,) = problems_of('folder', root, tmp_path / 's')
  assert 'd.nii.gz: is the same scan as' in found and 'c1.nii.gz' in found
  # not compressed, the other way round, and in another part: still the same voxels
  for kind, write, array in (('images', volumes.write_image, scan(1)), ('labels', volumes.write_label, label_map(1))):
    (root / kind / 'd.nii.gz').unlink()
    write(root / kind / 'd.nii', array, geometry(axes='RPI'))
  describe(root, split={'train': ['c0', 'c1', 'c2'], 'val': ['c3'], 'test': ['d']})
  (found,) = problems_of('folder', root, tmp_path / 't')
  assert 'c1 in train, d in test' in found


def test_a_set_without_labels_makes_no_store(tmp_path):
  root = make(tmp_path / 'raw', n=1)
  (root / 'images').rename(root / 'imagesTs')
  for folder in ('imagesTr', 'labelsTr'):
    (root / folder).mkdir()
  assert 'no usable labelled case' in problems_of('folder', root, tmp_path / 's')[0]


@pytest.mark.parametrize(
  'fits',
  [
    dict(order=2),
    dict(order='cubik'),
    dict(window='papr'),
    dict(cases=0),
    dict(fit='x'),
    dict(size=(0, 1)),
    dict(fractions=(0, 1, 0)),
    dict(spacing_mm=(1, 1)),
  ],
)
def test_invalid_options(tmp_path, fits):
  problems_of('folder', make(tmp_path / 'raw', n=1), tmp_path / 's', **fits)


def test_paths_that_cannot_hold_a_store(tmp_path):
  root = make(tmp_path / 'raw', n=1)
  before = contents(root)
  with pytest.raises(InputError, match='not the index of a store'):
    prepare_store('folder', root, root, **SMALL)  # would overwrite the user's dataset.json
  assert contents(root) == before
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.tex').touch()
  assert 'holds other files' in problems_of('folder', root, tmp_path / 'mine')[0]
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='file/store: cannot be written'):
    prepare_store('folder', root, tmp_path / 'file' / 'store', **SMALL)
  with pytest.raises(InputError, match='nowhere: no such folder'):
    prepare_store('chaos_ct', tmp_path / 'nowhere', tmp_path / 's', **SMALL)
  assert not (tmp_path / 's').exists()


def test_cases_that_do_not_exist(tmp_path):
  root = make(tmp_path / 'raw')
  assert 'Usable are c0, c1' in problems_of('folder', root, tmp_path / 's', cases=['c9'])[0]
  assert 'only 4 usable cases' in problems_of('folder', root, tmp_path / 's', cases=9)[0]
