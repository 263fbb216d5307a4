"""Codes of organs: those of the DICOM standard, as pydicom has them, and private ones for all other names."""

import pytest
from pydicom.sr.codedict import codes

from afw_jax.data.sets import organ_codes, public


def test_every_code_is_one_of_the_standard_with_its_meaning():
  known = {}
  for keyword in codes.SCT.dir():
    code = getattr(codes.SCT, keyword)
    known.setdefault(code.value, set()).add(code.meaning)
  for value, meaning, _, _ in organ_codes._ORGANS:
    assert meaning in known[value], (value, meaning)
  for code in (organ_codes.ANATOMICAL, organ_codes.ABNORMAL, organ_codes.LEFT, organ_codes.RIGHT):
    assert code.meaning in known[code.value]


@pytest.mark.parametrize(
  'names, value, side',
  [
    ('liver Liver LIVER', '10200004', None),
    ('left_kidney kidney_left KidneyLeft kidney-l Left.Kidney', '64033007', 'Left'),
    ('right_adrenal_gland adrenal_gland_right adrenal(R)', '23451007', 'Right'),
    ('kidney kidneys', '64033007', None),
    ('oesophagus esophagus', '32849002', None),
    ('inferior_vena_cava IVC postcava', '64131007', None),
    ('portal_vein', '32764006', None),
    ('urinary_bladder bladder', '89837001', None),
    ('small_bowel small-intestine', '30315005', None),
  ],
)
def test_the_names_of_data_sets(names, value, side):
  for name in names.split():
    found = organ_codes.find(name)
    assert (found.kind.value, found.kind.scheme, found.side and found.side.meaning) == (value, 'SCT', side), name


@pytest.mark.parametrize(
  'name',
  ['portal_and_splenic_vein', 'prostate/uterus', 'left liver', 'left_right_kidney', 'organ 7', 'Leber', '肝', 'l'],
)
def test_other_names_are_private_and_say_the_name(name):
  found = organ_codes.find(name)
  assert found.kind.scheme == '99AFWJAX' and found.kind.meaning == name and found.side is None
  assert 1 <= len(found.kind.value) <= 16 and found.kind.value.isascii()
  assert found.category.meaning == 'Anatomical Structure'


def test_lesions_are_no_anatomical_structures():
  for name in ('liver_tumor', 'kidney cyst', 'Tumour'):
    assert organ_codes.find(name).category.meaning == 'Morphologically Abnormal Structure'


def test_private_values_differ_and_texts_are_what_dicom_takes():
  names = ['a' * 80 + end for end in 'bc'] + ['a\\b', 'a/b', ' a', 'a ', '\t', 'a\nb', '']
  found = [organ_codes.find(name) for name in names]
  assert len({one.kind.value for one in found}) == len(names)
  for one in found:
    assert 0 < len(one.kind.meaning) <= 64 and '\\' not in one.kind.meaning and one.kind.meaning.isprintable()
  assert found[0].kind.meaning != found[1].kind.meaning


def test_the_organs_of_the_public_data_sets_have_codes():
  names = {*public._BTCV_IDS, *public._CHAOS_MR_ORGANS, *public._ABDOMEN_IDS}
  assert {name for name in names if organ_codes.find(name).kind.scheme != 'SCT'} == {'portal_and_splenic_vein'}


def test_pairs_of_organs_by_their_names():
  names = ['liver', 'right_kidney', 'left_kidney', 'Lung L', 'lungR', 'left_thing', 'thing_rt', 'left_liver', 'left']
  assert organ_codes.pairs(names) == [
    ('left_kidney', 'right_kidney'),
    ('Lung L', 'lungR'),
    ('left_thing', 'thing_rt'),
  ]
  assert organ_codes.pairs(['kidney_left', 'left_kidney', 'right_kidney']) == []  # which of them?
