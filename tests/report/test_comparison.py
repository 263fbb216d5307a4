import numpy as np
import pytest
from scored_run import CONFIG, SETTINGS, make_pooled, make_run

from afw_jax.errors import InputError
from afw_jax.report.comparison import compare


def test_compare(tmp_path):
  rng = np.random.default_rng(0)
  base = {f'case{i:02d}': tuple(rng.uniform(0.5, 0.9, 2)) for i in range(14)}
  better = {
    case: tuple(v + 0.05 + 0.01 * rng.random() for v in values) for case, values in base.items() if case != 'case03'
  }
  other = CONFIG | {'loss': {'name': 'ce_dice'}}
  text = compare([make_run(tmp_path / 'one', base, config=other), make_run(tmp_path / 'two', better)])
  assert '13 common case(s) (1 others left out)' in text and '**strict**' in text and 'Only' not in text
  difference = 100 * np.mean([np.mean(better[c]) - np.mean(base[c]) for c in better])
  (row,) = [line for line in text.splitlines() if line.startswith('| ce_afw - ce_dice')]
  assert f'{difference:+.2f} [' in row and '< 0.001' in row and row.endswith('| 13 |')
  mean = 100 * np.mean([base[c][1] for c in better])
  assert f'{mean:.2f}' in text.split('## DSC of each organ')[1]
  same = compare([str(tmp_path / 'one'), str(tmp_path / 'one')])
  assert '+0.00 [+0.00, +0.00] | 1.000' in same


BASE = {'a': (0.9, 0.5), 'b': (0.8, 0.7)}


@pytest.mark.parametrize('other, said', [
  ({'split': 'train', 'training_split': 'train'}, r"two: has split 'train', .*one has 'test'"),
  ({'split': 'val', 'training_split': 'val'}, r"two: has split 'val', .*one has 'test'"),
  ({'split': None}, r"two: has split 'not recorded', .*one has 'test'"),
  ({'training_split': 'train'}, r"two: case a would be scored as 'test', but its scan was in 'train'"),
  ({'training_split': 'val'}, r"two: case a would be scored as 'test', but its scan was in 'val'"),
  ({'convention': 'monai'}, r"two: has convention 'monai', .*one has 'strict'"),
  ({'nsd_tolerance_mm': 1.0}, r'two: has NSD tolerance 1.0, .*one has 2.0'),
  ({'nsd_tolerance_mm': {'liver': 2.0, 'gall_bladder': 1.0}}, r'two: has NSD tolerance .*one has 2.0'),
  ({'has_mm': False}, r"two: has unit of the distances 'voxels', .*one has 'mm'"),
  ({'settings': {**SETTINGS, 'checkpoint': 'last'}}, r"two: was scored with the checkpoint 'last', .*one with 'best'"),
  ({'settings': None}, r"two: was scored with the checkpoint 'not recorded', .*one with 'best'"),
  ({'spacing_mm': [5, 1, 1]}, r'two: case a has spacing \(5, 1, 1\) mm, in .*one \(3, 1, 1\) mm'),
  ({'config': CONFIG | {'data': {'dataset': 'chaos_mr_t2'}}}, r"two: has data set 'chaos_mr_t2', .*one has 'synapse'"),
  ({'dsc': {'z': (0.5, 0.5)}}, 'no case in common'),
  ({'dsc': {'a': (0.9, None), 'b': (0.8, 0.7)}}, r'gall_bladder of case a has 0 voxels in the truth, in .*one 100'),
  ({'organs': ['gall_bladder', 'liver']}, 'two: has organs'),
])  # fmt: skip
def test_runs_that_cannot_be_compared_are_refused(tmp_path, other, said):
  one, two = make_run(tmp_path / 'one', BASE), make_run(tmp_path / 'two', **{'dsc': BASE} | other)
  with pytest.raises(InputError, match=said):
    compare([one, two])
  with pytest.raises(InputError):
    compare([two, one])


def test_one_run_is_not_a_comparison(tmp_path):
  with pytest.raises(InputError, match='Name two or more'):
    compare([make_run(tmp_path / 'one')])


def test_what_cannot_be_checked_is_named(tmp_path):
  other = CONFIG | {'loss': {'name': 'ce_dice'}}
  one, two = make_run(tmp_path / 'one', BASE), make_run(tmp_path / 'two', BASE, config=other, training_split=None)
  assert '**Not checked: ce_dice.**' in compare([one, two])
  assert 'Not checked' not in compare([one, one])


def test_different_settings_are_named(tmp_path):
  settings = {**SETTINGS, 'largest_component': True, 'mirror_axes': [0, 1]}
  other = CONFIG | {'loss': {'name': 'ce_dice'}}
  one, two = make_run(tmp_path / 'one', BASE), make_run(tmp_path / 'two', BASE, config=other, settings=settings)
  text = compare([one, two])
  assert '**Predicted with different settings:** ce_afw with mirror_axes [], largest_component False' in text
  assert 'ce_dice with mirror_axes [0, 1], largest_component True' in text and 'overlap' not in text


def test_a_comparison_on_training_cases_says_so(tmp_path):
  run = make_run(tmp_path / 'run', BASE, split='train', training_split='train')
  assert '**Training split.**' in compare([run, run])


def test_pooled_folds_are_compared_like_runs(tmp_path):
  other = CONFIG | {'loss': {'name': 'ce_dice'}}
  one = make_pooled(tmp_path / 'one', BASE, config=other)
  text = compare([one, make_pooled(tmp_path / 'two', BASE)])
  assert '2 common case(s)' in text and '**Pooled over 2 folds.**' in text and '| ce_afw - ce_dice |' in text
  text = compare([one, make_pooled(tmp_path / 'three', BASE | {'c': (0.1, 0.2)}, count=3, unfinished=('3/3',))])
  assert '**Different folds:** ce_dice: 1/2, 2/2; ce_afw: 1/3, 2/3, 3/3.' in text
  assert '**Folds whose training had not come to its end:** ce_afw: 3/3.' in text
  with pytest.raises(InputError, match="has split 'test'"):
    compare([one, make_run(tmp_path / 'plain', BASE)])
