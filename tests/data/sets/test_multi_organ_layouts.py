"""The layouts of TotalSegmentator, AMOS and FLARE22: cases, parts, organs, and what is wrong with them."""

import json

import numpy as np
import pytest

from afw_jax.data.sets.layouts import find_cases
from afw_jax.data.sets.lookup import get_spec
from afw_jax.data.sets.multi_organ import TOTALSEGMENTATOR_ORGANS
from afw_jax.data.sets.spec import class_table
from afw_jax.errors import InputError, InputErrors

META = 'image_id;age;gender;institute;study_type;split\r\n'


def touch(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def totalsegmentator(root, *cases, organs=TOTALSEGMENTATOR_ORGANS):
  for case in cases:
    touch(root, f'{case}/ct.nii.gz', *(f'{case}/segmentations/{organ}.nii.gz' for organ in (*organs, 'heart')))


def find(root, name='totalsegmentator', **options):
  return find_cases(get_spec(name, str(root), **options), root)


def test_totalsegmentator(tmp_path):
  totalsegmentator(tmp_path, 's0011', 's0000', 's0004')
  touch(tmp_path, 's9999/readme.txt', '.cache/ct.nii.gz')
  assert [c.split for c in find(tmp_path)] == [None] * 3
  rows = ''.join(f's{n:04d};60;m;A;ct;{part}\r\n' for n, part in ((0, 'train'), (4, 'test'), (8, 'train'), (11, 'val')))
  (tmp_path / 'meta.csv').write_text(META + rows, encoding='utf-8-sig')  # with a byte order mark, as published
  cases = find(tmp_path)
  assert [(c.id, c.split) for c in cases] == [('s0000', 'train'), ('s0004', 'test'), ('s0011', 'val')]
  assert cases[0].image == str(tmp_path / 's0000' / 'ct.nii.gz')
  assert cases[0].label == str(tmp_path / 's0000' / 'segmentations')


def test_organs_of_totalsegmentator():
  spec = get_spec('totalsegmentator')
  assert spec.organs == TOTALSEGMENTATOR_ORGANS and len(spec.organs) == 14 and spec.in_hu
  assert class_table(spec, 16).tolist() == [*range(15), -1] and spec.overlapping == 'error'
  spec = get_spec('totalsegmentator', organs=('heart', 'liver'), overlap='last')
  assert spec.labels == spec.output_ids == {'heart': 1, 'liver': 2} and spec.overlapping == 'last'


@pytest.mark.parametrize(
  'options, match',
  [
    ({'organs': ('liver', 'liver')}, 'data.organs: names an organ twice'),
    ({'organs': ('liver', '../liver')}, "data.organs: '../liver' is no name of a mask"),
    ({'organs': ('liver', '')}, "data.organs: '' is no name"),
    ({'overlap': 'lst'}, "data.overlap: 'lst' is not known. Did you mean 'last'"),
    ({'name': 'flare22', 'organs': ('liver',)}, 'data.organs: is given, but the organs of flare22'),
    ({'name': 'amos', 'overlap': 'last'}, "data.overlap: is 'last', but the organs of amos are in one label map"),
  ],
)
def test_choices_that_cannot_be(options, match):
  with pytest.raises(InputError, match=match):
    get_spec(**{'name': 'totalsegmentator'} | options)


def test_missing_masks(tmp_path):
  totalsegmentator(tmp_path, 's0000', 's0001', 's0002')
  with pytest.raises(
    InputError, match=r"data.organs: no case has a mask of livr \(livr.nii.gz\)\. Did you mean 'liver'"
  ):
    find(tmp_path, organs=('livr',))
  with pytest.raises(InputError, match=r'mask of zzz, yyy \(zzz.nii.gz\)\. Masks are adrenal_gland_left, '):
    find(tmp_path, organs=('zzz', 'liver', 'yyy'))
  for n in (1, 2):
    (tmp_path / f's000{n}' / 'segmentations' / 'aorta.nii.gz').unlink()
  with pytest.raises(InputError, match=r'0001/segmentations: has no aorta.nii.gz \(and so 2 of 3 cases: s0001, s0002'):
    find(tmp_path)
  assert len(find(tmp_path, organs=('liver', 'heart'))) == 3
  (tmp_path / 's0000' / 'ct.nii.gz').unlink()
  with pytest.raises(InputErrors, match='s0000/ct.nii.gz: is missing, although segmentations is there'):
    find(tmp_path)


@pytest.mark.parametrize(
  'content, match',
  [
    (b'\xff\xfe\x00', 'meta.csv: is damaged'),
    (b'', 'no columns image_id and split'),
    (b'image_id,split\ns0000,train\n', 'divided by semicolons'),
    (
      META.encode() + b's0000;60;m;A;ct;training\r\n',
      "the part 'training' for the case 's0000' in line 2; parts are train",
    ),
    (META.encode() + b's0000;60\r\n', "the part None for the case 's0000' in line 2"),
    (
      META.encode() + b's0000;60;m;A;ct;train\r\ns0000;60;m;A;ct;test\r\n',
      r'the case s0000 in two parts \(train and test\)',
    ),
  ],
)
def test_a_damaged_table(tmp_path, content, match):
  totalsegmentator(tmp_path, 's0000')
  (tmp_path / 'meta.csv').write_bytes(content)
  with pytest.raises(InputError, match=match):
    find(tmp_path)


def amos(root):
  for part, numbers in (('Tr', (1, 4, 507)), ('Va', (8, 510))):
    touch(root, *(f'{kind}{part}/amos_{n:04d}.nii.gz' for n in numbers for kind in ('images', 'labels')))
  touch(root, 'imagesTs/amos_0002.nii.gz', 'imagesTs/amos_0599.nii.gz')


def test_amos(tmp_path):
  amos(tmp_path)
  parts = [(c.id, c.split, c.label is not None) for c in find(tmp_path, 'amos')]
  wanted = [(1, 'train', True), (2, None, False), (4, 'train', True), (8, 'val', True)]
  assert parts == [(f'amos_{n:04d}', part, labelled) for n, part, labelled in wanted]
  assert [c.id for c in find(tmp_path, 'amos_mr')] == ['amos_0507', 'amos_0510', 'amos_0599']
  spec = get_spec('amos')
  assert len(spec.organs) == 15 and spec.in_hu and not get_spec('amos_mr').in_hu
  assert [spec.labels[o] for o in ('spleen', 'right_kidney', 'liver', 'pancreas', 'duodenum')] == [1, 2, 6, 10, 13]
  touch(tmp_path, 'labelsTs/amos_0002.nii.gz')
  assert [c.split for c in find(tmp_path, 'amos')] == ['train', 'test', 'train', 'val']
  touch(tmp_path, 'labelsVa/amos_0009.nii.gz', 'imagesTr/scan.nii.gz')
  with pytest.raises(InputErrors) as e:
    find(tmp_path, 'amos')
  assert 'scan.nii.gz: is not named' in str(e.value) and 'amos_0009.nii.gz: has no image' in str(e.value)


def test_the_dialect_of_amos_is_read_for_a_folder_too(tmp_path):
  """Its dataset.json, which misspells the aorta; without parts of its own, for the scans of one modality."""
  amos(tmp_path)
  names = {'0': 'background', '1': 'spleen', '8': 'arota', '15': 'prostate/uterus'}
  listed = [{'image': f'./imagesTr/amos_{n:04d}.nii.gz', 'label': f'./labelsTr/amos_{n:04d}.nii.gz'} for n in (1, 4)]
  content = {'name': 'AMOS', 'modality': {'0': 'CT'}, 'labels': names, 'numTraining': 2, 'training': listed}
  content |= {'tensorImageSize': '3D', 'licence': 'CC-BY-SA 4.0', 'test': ['./imagesTs/amos_0002.nii.gz']}
  (tmp_path / 'dataset.json').write_text(json.dumps(content), encoding='utf-8')
  spec = get_spec('folder', str(tmp_path))
  assert spec.output_ids == {'spleen': 1, 'arota': 8, 'prostate/uterus': 15} and spec.modality == 'CT'
  labelled = [c.id for c in find_cases(spec, tmp_path) if c.label]
  assert labelled == ['amos_0001', 'amos_0004', 'amos_0507']


def test_flare22(tmp_path):
  touch(tmp_path, *(f'a/images/FLARE22_Tr_{n:04d}_0000.nii.gz' for n in (2, 1)))
  touch(tmp_path, *(f'labels/FLARE22_Tr_{n:04d}.nii.gz' for n in (2, 1)), 'images/Case_00001_0000.nii.gz')
  cases = find(tmp_path, 'flare22')
  assert [c.id for c in cases] == ['FLARE22_Tr_0001', 'FLARE22_Tr_0002'] and {c.split for c in cases} == {None}
  assert cases[0].image.endswith('a/images/FLARE22_Tr_0001_0000.nii.gz')
  ids = dict(liver=1, right_kidney=2, spleen=3, pancreas=4, aorta=5, inferior_vena_cava=6, right_adrenal_gland=7)
  ids |= dict(left_adrenal_gland=8, gallbladder=9, oesophagus=10, stomach=11, duodenum=12, left_kidney=13)
  assert get_spec('flare22').output_ids == ids
  np.testing.assert_array_equal(class_table(get_spec('flare22'), 15), [*range(14), -1])
  touch(tmp_path, 'labels/FLARE22_Tr_0003.nii.gz')
  with pytest.raises(InputError, match='FLARE22_Tr_0003.nii.gz: has no image'):
    find(tmp_path, 'flare22')
