import json

import pytest

from afw_jax.data.sets.layouts import find_cases
from afw_jax.data.sets.lookup import NAMES, get_spec
from afw_jax.data.sets.public import TRANSUNET_TRAIN_SLICES
from afw_jax.errors import InputError, InputErrors


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def folder(root, *names, **changes):
  touch(root, *names)
  (root / 'dataset.json').write_text(json.dumps({'channel_names': {'0': 'CT'}, 'labels': {'liver': 1}, **changes}))
  return find_cases(get_spec('folder', str(root)), root)


def ids(cases):
  return [case.id for case in cases]


@pytest.mark.parametrize('name', NAMES[:-1])
def test_missing_path_says_how_to_get_it_and_the_layout(tmp_path, name):
  for root in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(InputError, match='Expected layout: .*') as e:
      find_cases(get_spec(name, str(root)), root)
    assert str(root) in str(e.value) and get_spec(name).how_to_get[:30] in str(e.value)


def test_btcv(tmp_path):
  touch(tmp_path, *(f'Training/{kind}/{kind}{n}.nii.gz' for n in ('0005', '0001') for kind in ('img', 'label')))
  cases = find_cases(get_spec('synapse', str(tmp_path)), tmp_path)
  assert ids(cases) == ['case0001', 'case0005'] and [c.split for c in cases] == ['test', 'train']
  assert cases[0].image.endswith('Training/img/img0001.nii.gz') and cases[0].label.endswith('label/label0001.nii.gz')
  touch(tmp_path, 'Training/img/img0002.nii.gz', 'Training/label/label0003.nii.gz', 'Training/img/scan.nii.gz')
  with pytest.raises(InputErrors) as e:
    find_cases(get_spec('synapse', str(tmp_path)), tmp_path)
  assert len(e.value.errors) == 3
  assert 'img0002.nii.gz: has no label' in str(e.value) and 'label0003.nii.gz: has no image' in str(e.value)


def test_transunet(tmp_path):
  n = TRANSUNET_TRAIN_SLICES['case0030']
  assert sum(TRANSUNET_TRAIN_SLICES.values()) == 2211
  touch(tmp_path, *(f'train_npz/case0030_slice{z:03d}.npz' for z in range(n)), 'test_vol_h5/case0001.npy.h5')
  cases = find_cases(get_spec('synapse', str(tmp_path)), tmp_path)
  assert [(c.id, c.split) for c in cases] == [('case0001', 'test'), ('case0030', 'train')]
  assert cases[1].image == cases[1].label == str(tmp_path / 'train_npz' / 'case0030_slice*.npz')
  (tmp_path / 'train_npz' / f'case0030_slice{n - 1:03d}.npz').unlink()
  with pytest.raises(InputError, match=f'lacks 1 of {n} slices: {n - 1}'):
    find_cases(get_spec('synapse', str(tmp_path)), tmp_path)


@pytest.mark.parametrize('above', ['', 'CT', 'Train_Sets/CT'])
def test_chaos_ct(tmp_path, above):
  for n in (1, 10, 2):
    touch(tmp_path / above, f'{n}/DICOM_anon/i0000,0000b.dcm', f'{n}/Ground/liver_GT_000.png')
  cases = find_cases(get_spec('chaos_ct', str(tmp_path)), tmp_path)
  assert ids(cases) == ['case_01', 'case_02', 'case_10'] and {c.split for c in cases} == {None}
  touch(tmp_path / above, '7/DICOM_anon/i0000,0000b.dcm')
  with pytest.raises(InputError, match='7/Ground: no such folder'):
    find_cases(get_spec('chaos_ct', str(tmp_path)), tmp_path)


def test_chaos_mr(tmp_path):
  touch(
    tmp_path / 'Train_Sets/MR/3',
    'T1DUAL/DICOM_anon/InPhase/a.dcm',
    'T1DUAL/DICOM_anon/OutPhase/a.dcm',
    'T1DUAL/Ground/a.png',
    'T2SPIR/DICOM_anon/a.dcm',
    'T2SPIR/Ground/a.png',
  )
  for name, image, label in (
    ('t1in', 'T1DUAL/DICOM_anon/InPhase', 'T1DUAL/Ground'),
    ('t2', 'T2SPIR/DICOM_anon', 'T2SPIR/Ground'),
    ('t1out', 'T1DUAL/DICOM_anon/OutPhase', 'T1DUAL/Ground'),
  ):
    (case,) = find_cases(get_spec(f'chaos_mr_{name}', str(tmp_path)), tmp_path)
    assert case.id == 'case_03' and case.image.endswith(image) and case.label.endswith(label)


def test_chaos_as_nifti(tmp_path):
  touch(tmp_path, 'images/case_02.nii.gz', 'labels/case_02.nii.gz', 'images/.DS_Store', 'images/readme.txt')
  assert ids(find_cases(get_spec('chaos_mr_t2', str(tmp_path)), tmp_path)) == ['case_02']


def test_abdomenct1k(tmp_path):
  touch(
    tmp_path,
    'ImagePart1/Case_00001_0000.nii.gz',
    'ImagePart2/Case_00219_0000.nii.gz',
    'Mask/Case_00001.nii.gz',
    'Mask/Case_00219.nii.gz',
  )
  cases = find_cases(get_spec('abdomenct1k', str(tmp_path)), tmp_path)
  assert ids(cases) == ['Case_00001', 'Case_00219'] and cases[0].label.endswith('Mask/Case_00001.nii.gz')
  touch(tmp_path, 'copy/Case_00001_0000.nii.gz')
  with pytest.raises(InputError, match='Case_00001 exists twice'):
    find_cases(get_spec('abdomenct1k', str(tmp_path)), tmp_path)


def test_plain_folder(tmp_path):
  cases = folder(
    tmp_path,
    'images/b_0000.nii.gz',
    'labels/b.nii.gz',
    'images/a.nii',
    'labels/a.nii.gz',
    'images/c_0001.nii.gz',
    'labels/c_0001.nii.gz',
    'images/d/1.dcm',
    'labels/d.nii.gz',
  )
  assert ids(cases) == ['a', 'b', 'c_0001', 'd']  # nnU-Net's suffix is cut only where the label has none
  assert cases[3].image.endswith('images/d')


def test_nnunet_folders(tmp_path):
  cases = folder(tmp_path, 'imagesTr/a_0000.nii.gz', 'labelsTr/a.nii.gz', 'imagesTs/b_0000.nii.gz')
  assert [(c.id, c.split, c.label is None) for c in cases] == [('a', None, False), ('b', None, True)]
  cases = folder(tmp_path, 'labelsTs/b.nii.gz')
  assert [(c.id, c.split, c.label is None) for c in cases] == [('a', None, False), ('b', 'test', False)]
  with pytest.raises(InputError, match='second channel of case a'):
    folder(tmp_path, 'imagesTr/a_0001.nii.gz')


def test_explicit_split(tmp_path):
  names = [f'{k}/{c}.nii.gz' for k in ('images', 'labels') for c in 'abc']
  cases = folder(tmp_path, *names, split={'train': ['c', 'a'], 'test': ['b']})
  assert [c.split for c in cases] == ['train', 'test', 'train']
  with pytest.raises(InputError, match='without scan and label: d'):
    folder(tmp_path, split={'train': ['a', 'd']})


@pytest.mark.parametrize(
  'extra, message',
  [
    ('images/z.nii.gz', 'z.nii.gz: has no label'),
    ('labels/z.nii.gz', 'z.nii.gz: has no image'),
    ('images/a.nii', 'case a exists twice'),
    ('labels/a.nii', 'case a exists twice'),
    ('images/a_0000.nii.gz', 'case a exists twice'),
    ('images/x.mgz', 'x.mgz: is not a scan'),
    ('imagesTr/a.nii.gz', 'both images/ and imagesTr/'),
  ],
)
def test_what_does_not_match(tmp_path, extra, message):
  with pytest.raises(InputError, match=message):
    folder(tmp_path, 'images/a.nii.gz', 'labels/a.nii.gz', extra)


def test_names_that_differ_in_case_alone(tmp_path):
  with pytest.raises(InputError, match='same case id'):
    folder(tmp_path, *(f'{k}/{c}.nii.gz' for k in ('images', 'labels') for c in 'aA'))


def test_all_problems_are_reported_at_once(tmp_path):
  with pytest.raises(InputErrors) as e:
    folder(tmp_path, 'images/a.nii.gz', 'labels/b.nii.gz', 'images/c.nii.gz', 'images/d.png')
  assert len(e.value.errors) == 4


NFC, NFD = 'M\u00fcller', 'Mu\u0308ller'


@pytest.mark.parametrize('scan', [NFC, NFD])
@pytest.mark.parametrize('label', [NFC, NFD])
@pytest.mark.parametrize('listed', [NFC, NFD])
def test_names_in_different_unicode_forms_are_the_same(tmp_path, scan, label, listed):
  files = [f'imagesTr/{scan}_0000.nii.gz', f'labelsTr/{label}.nii.gz', 'imagesTr/b_0000.nii.gz', 'labelsTr/b.nii.gz']
  cases = folder(tmp_path, *files, split={'train': ['b'], 'test': [listed]})
  assert [(c.id, c.split, c.subject) for c in cases] == [(NFC, 'test', NFC), ('b', 'train', 'b')][
    :: 1 if NFC < 'b' else -1
  ]
  case = next(c for c in cases if c.id == NFC)
  assert case.image == str(tmp_path / files[0]) and case.label == str(tmp_path / files[1])  # as they are on the disk


def test_one_case_in_both_unicode_forms(tmp_path):
  files = [f'{kind}/{name}.nii.gz' for kind in ('images', 'labels') for name in (NFC, NFD)]
  with pytest.raises(InputErrors, match='exists twice'):
    folder(tmp_path, *files)
