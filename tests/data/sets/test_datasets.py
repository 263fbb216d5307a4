import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afw_jax.data.sets import datasets
from afw_jax.data.sets.datasets import class_table, resolve_window, scan_window, spec, split_cases
from afw_jax.errors import InputError

GOOD = {'channel_names': {'0': 'CT'}, 'labels': {'background': 0, 'liver': 1, 'spleen': 7}, 'file_ending': '.nii.gz'}


def folder(tmp_path, **changes):
  (tmp_path / 'dataset.json').write_text(json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None}))
  return spec('folder', str(tmp_path))


def test_btcv_ids_become_transunet_classes():
  s = spec('synapse')
  table = class_table(s, 14)
  # spleen, R kidney, L kidney, gallbladder, oesophagus, liver, stomach, aorta, IVC, portal, pancreas, adrenals
  assert table.tolist() == [0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0]
  assert (
    s.labels
    == s.output_ids
    == dict(aorta=1, gallbladder=2, left_kidney=3, right_kidney=4, liver=5, pancreas=6, spleen=7, stomach=8)
  )
  assert class_table(s, 20)[14:].tolist() == [-1] * 6
  assert len(s.splits['train']) == 18 and len(s.splits['test']) == 12
  assert not set(s.splits['train']) & set(s.splits['test'])
  assert s.window_hu == (50, 350)


def test_transunet_layout_keeps_its_ids(tmp_path):
  (tmp_path / 'train_npz').mkdir()
  s = spec('synapse', str(tmp_path))
  assert class_table(s, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, -1]
  assert resolve_window(None, s) == (0, 1)
  with pytest.raises(InputError, match='HU'):
    resolve_window('paper', s)


@pytest.mark.parametrize('name', ['chaos_mr_t1in', 'chaos_mr_t1out', 'chaos_mr_t2'])
def test_chaos_mr_ids_of_both_layouts(tmp_path, name):
  grey = class_table(spec(name, str(tmp_path)), 256)
  assert grey[[0, 63, 126, 189, 252]].tolist() == [0, 1, 2, 3, 4]
  assert grey[[1, 90, 150, 220]].tolist() == [-1] * 4
  (tmp_path / 'images').mkdir()
  assert class_table(spec(name, str(tmp_path)), 6).tolist() == [0, 1, 2, 3, 4, -1]
  assert spec(name).organs == ('liver', 'right_kidney', 'left_kidney', 'spleen')
  assert resolve_window(None, spec(name)) == 'percentile'


def test_every_named_set_is_consistent():
  for name in datasets.NAMES[:-1]:
    s = spec(name)
    assert s.name == name and set(s.raw_ids) == set(s.output_ids) == set(s.organs)
    ids = [i for organ in s.organs for i in s.raw_ids[organ]]
    assert len(ids) == len(set(ids)) and 0 not in ids and s.how_to_get and 'ROOT' in s.layout
  assert spec('chaos_ct').raw_ids == {'liver': (255,)}
  assert spec('abdomenct1k').raw_ids == dict(liver=(1,), kidney=(2,), spleen=(3,), pancreas=(4,))
  assert len(spec('abdomenct1k').defects) == 22
  assert {'Case_00219', 'Case_00656', 'Case_00078', 'Case_00280', 'Case_00578'} <= spec('abdomenct1k').defects.keys()
  assert not {'Case_00279', 'Case_00272', 'Case_00573'} & spec('abdomenct1k').defects.keys()


def test_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'synapse'"):
    spec('synpase')


def test_folder_in_both_dialects(tmp_path):
  s = folder(tmp_path)
  assert s.labels == {'liver': 1, 'spleen': 2} and s.output_ids == {'liver': 1, 'spleen': 7} and s.modality == 'CT'
  assert class_table(s, 9).tolist() == [0, 1, -1, -1, -1, -1, -1, 2, -1]
  s = folder(
    tmp_path, channel_names=None, modality={'0': 'MRI'}, labels={'0': 'background', '7': 'spleen', '1': 'liver'}
  )
  assert s.labels == {'liver': 1, 'spleen': 2} and s.modality == 'MR' and s.window_hu is None
  s = folder(tmp_path, other_labels='background')
  assert class_table(s, 9).tolist() == [0, 1, 0, 0, 0, 0, 0, 2, 0]
  assert folder(tmp_path, split={'train': ['a'], 'test': ['b']}).splits == {'train': ('a',), 'test': ('b',)}


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(channel_names={'0': 'CT', '1': 'PET'}), '2 channels'),
    (dict(channel_names=None), 'no "channel_names"'),
    (dict(labels={'background': 0, 'kidneys': [1, 2]}), 'region'),
    (dict(labels={'background': 0, 'liver': 1, 'ignore': 2}), 'ignore'),
    (dict(labels={'background': 0, 'liver': 1.5}), 'id 1.5'),
    (dict(labels={'background': 0, 'liver': True}), 'id True'),
    (dict(labels={'background': 1, 'liver': 0}), 'Id 0, and only 0'),
    (dict(labels={'background': 0, 'liver': 1, 'spleen': 1}), 'same id'),
    (dict(labels={'background': 0}), 'names no organ'),
    (dict(labels=None), 'no "labels"'),
    (dict(file_ending='.mha'), 'Convert'),
    (dict(other_labels='drop'), 'other_labels'),
    (dict(split={'train': ['a'], 'test': ['a']}), 'twice'),
    (dict(split={'training': ['a']}), 'split'),
  ],
)
def test_folder_description_that_cannot_be_used(tmp_path, changes, message):
  with pytest.raises(InputError, match=message) as e:
    folder(tmp_path, **changes)
  assert 'dataset.json' in str(e.value) and '\n' not in str(e.value)


def test_folder_without_description(tmp_path):
  with pytest.raises(InputError, match='no such folder.*expected layout'):
    spec('folder', str(tmp_path / 'nowhere'))
  with pytest.raises(InputError, match='dataset.json: no such file.*channel_names'):
    spec('folder', str(tmp_path))
  (tmp_path / 'dataset.json').write_text('{"labels": ')
  with pytest.raises(InputError, match='not valid JSON'):
    spec('folder', str(tmp_path))


def test_windows():
  ct, mr = spec('synapse'), spec('chaos_mr_t2')
  assert resolve_window('paper', ct) == (50, 350) and resolve_window('transunet', ct) == (-125, 275)
  assert resolve_window([-160, 240], ct) == (-160, 240) and resolve_window((0, 1), mr) == (0, 1)
  for bad, s in (('papr', ct), ((3, 3), ct), ((0, float('nan')), ct), ((1,), ct), ('paper', mr)):
    with pytest.raises(InputError):
      resolve_window(bad, s)
  assert scan_window(np.zeros(3), [50, 350]) == (50, 350)


def test_percentile_window_does_not_depend_on_the_air_around():
  rng = np.random.default_rng(0)
  body = rng.integers(100, 900, (4, 50, 50)).astype(np.int16)
  low, high = scan_window(body, 'percentile')
  padded = np.pad(body, ((0, 0), (60, 60), (60, 60)))
  low2, high2 = scan_window(padded, 'percentile')
  assert 100 <= low <= 105 and 890 <= high <= 900
  assert abs(low2 - low) <= 2 and abs(high2 - high) <= 4
  assert scan_window(np.full((2, 2), 7, np.int16), 'percentile') == (7, 8)


def named(n, part=None):
  return [(f'c{i:03d}', f'c{i:03d}', part) for i in range(n)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.tuples(st.floats(0.1, 9), st.floats(0, 9), st.floats(0, 9)), st.integers(0, 9))
def test_split_is_a_partition_near_the_shares(n, fractions, seed):
  out = split_cases(named(n), fractions, seed)
  assert sorted(sum(out.values(), [])) == [c for c, _, _ in named(n)]
  assert out == split_cases(named(n)[::-1], fractions, seed)
  for part, f in zip(('train', 'val', 'test'), fractions):
    assert f > 0 or not out[part]
    assert abs(len(out[part]) - n * f / sum(fractions)) < 2 + 1e-9
    assert not (f and n >= 3) or out[part]
  assert not n or out['train']


def test_split_sizes_of_the_paper():
  sizes = lambda n, f: [len(v) for v in split_cases(named(n), f, 0).values()]
  assert sizes(40, (3, 1, 0)) == [30, 10, 0] and sizes(16, (3, 1, 0)) == [12, 4, 0]
  assert sizes(100, (6, 1, 3)) == [60, 10, 30] and sizes(200, (7.5, 1, 1.5)) == [150, 20, 30]
  assert sizes(1, (3, 1, 0)) == [1, 0, 0]


def test_split_depends_on_the_seed_and_keeps_subjects_together():
  assert split_cases(named(20), (1, 1, 0), 0) != split_cases(named(20), (1, 1, 0), 1)
  cases = [(f's{i}_{k}', f's{i}', None) for i in range(10) for k in 'ab']
  out = split_cases(cases, (6, 2, 2), 3)
  where = {c: part for part, ids in out.items() for c in ids}
  assert all(where[f's{i}_a'] == where[f's{i}_b'] for i in range(10)) and [len(v) for v in out.values()] == [12, 4, 4]


def test_given_parts_win():
  cases = named(10, 'train') + [('t', 't', 'test')]
  assert [len(v) for v in split_cases(cases, (1, 0, 0), 0).values()] == [10, 0, 1]
  assert [len(v) for v in split_cases(cases, (4, 1, 0), 0).values()] == [10, 0, 1]
  assert [len(v) for v in split_cases(cases, (4, 1, 0), 0, resplit_train=True).values()] == [8, 2, 1]
  with pytest.raises(InputError, match='own test part'):
    split_cases(cases, (6, 1, 3), 0)
  for bad in ((0, 1, 1), (1, -1, 1), (1, 1), (float('inf'), 1, 0)):
    with pytest.raises(InputError, match='shares'):
      split_cases(named(4), bad, 0)
