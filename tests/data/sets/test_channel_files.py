"""Which files are the channels of a case, and every way in which they are not."""

import json
import pathlib

import pytest

from afw_jax.data.sets import channel_files
from afw_jax.data.sets.layouts import find_cases
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputError, InputErrors

CHANNELS = {'0': 'CT', '1': 'T2'}


def cases(root, *names, **changes):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  described = {'channel_names': CHANNELS, 'labels': {'background': 0, 'liver': 1}, **changes}
  described = {key: value for key, value in described.items() if value is not None}
  (root / 'dataset.json').write_text(json.dumps(described), encoding='utf-8')
  return find_cases(get_spec('folder', str(root)), root)


def names(case):
  return [pathlib.Path(path).name for path in (case.image, *case.others)]


@pytest.mark.parametrize('images, labels', [('images', 'labels'), ('imagesTr', 'labelsTr')])
@pytest.mark.parametrize('key', ['channel_names', 'modality'])
def test_the_files_of_a_case_in_the_order_of_the_channels(tmp_path, images, labels, key):
  files = [f'{images}/{name}_{i}.nii.gz' for i in ('0001', '0000') for name in ('a', 'b_0001')]
  found = cases(
    tmp_path, *files, f'{labels}/a.nii.gz', f'{labels}/b_0001.nii.gz', 'imagesTs/n_0000.nii', 'imagesTs/n_0001.nii',
    **{'channel_names': CHANNELS if key == 'channel_names' else None, key: CHANNELS},
  )  # fmt: skip
  assert [case.id for case in found] == ['a', 'b_0001', 'n'] and found[2].label is None
  assert [names(case) for case in found] == [
    ['a_0000.nii.gz', 'a_0001.nii.gz'],
    ['b_0001_0000.nii.gz', 'b_0001_0001.nii.gz'],
    ['n_0000.nii', 'n_0001.nii'],
  ]


def test_the_order_is_that_of_the_numbers(tmp_path):
  many = {str(i): f'T2 {i}' for i in reversed(range(12))}
  files = [f'images/a_{i:04d}.nii.gz' for i in range(12)]
  (found,) = cases(tmp_path, *files, 'labels/a.nii.gz', channel_names=many)
  assert names(found) == [f'a_{i:04d}.nii.gz' for i in range(12)]
  assert get_spec('folder', str(tmp_path)).channels[10] == ('T2 10', 'MR')


GOOD = ('images/a_0000.nii.gz', 'images/a_0001.nii.gz', 'images/b_0000.nii.gz', 'images/b_0001.nii.gz')


@pytest.mark.parametrize(
  'without, more, said',
  [
    ('images/b_0001.nii.gz', None, r'b_0000.nii.gz: has no channel 1 \(T2\): there is no b_0001 beside it'),
    ('images/b_0000.nii.gz', None, r'b_0001.nii.gz: has no channel 0 \(CT\): there is no b_0000 beside it'),
    (None, 'images/b_0002.nii.gz', r'b_0002.nii.gz: is channel 2 of case b, and the channels are 0 \(CT\), 1 \(T2\)'),
    (None, 'images/b_0001.nii', r'b_0001.nii.gz: channel 1 of case b exists twice, also as .*b_0001.nii'),
    (None, 'images/b.nii.gz', r'b.nii.gz: does not say which channel it is'),
    (None, 'images/c_0000.nii.gz', r'c_0000.nii.gz: has no channel 1'),
    (None, 'images/b_0001.pt', r'b_0001.pt: is not a scan'),
  ],
)
def test_files_that_are_no_channels_are_named(tmp_path, without, more, said):
  files = [name for name in GOOD if name != without] + ([more] if more else [])
  with pytest.raises((InputError, InputErrors), match=said):
    cases(tmp_path, *files, 'labels/a.nii.gz', 'labels/b.nii.gz')


def test_unlabelled_scans_need_every_channel_too(tmp_path):
  with pytest.raises(InputError, match=r'n_0001.nii.gz: has no channel 0'):
    cases(tmp_path, *GOOD, 'labels/a.nii.gz', 'labels/b.nii.gz', 'imagesTs/n_0001.nii.gz')


def test_one_channel_named_and_two_there(tmp_path):
  with pytest.raises(InputError, match='a_0001.nii.gz: is a second channel of case a.*"channel_names"'):
    cases(tmp_path, *GOOD[:2], 'labels/a.nii.gz', channel_names={'0': 'CT'})


def test_the_order_in_which_files_are_found_does_not_matter():
  problems = []
  found = channel_files.group([(f'a_{i:04d}', i) for i in (2, 0, 1)], ['T1', 'T2', 'CT'], problems)
  assert found == {'a': [0, 1, 2]} and not problems
