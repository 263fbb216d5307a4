"""Data sets by name: label ids, classes and splits of the published ones, and dataset.json of a user's folder."""

import json

import pytest

from afw_jax.data.sets.lookup import NAMES, get_spec
from afw_jax.data.sets.spec import IGNORED, class_table
from afw_jax.errors import InputError

GOOD = {'channel_names': {'0': 'CT'}, 'labels': {'background': 0, 'liver': 1, 'spleen': 7}, 'file_ending': '.nii.gz'}


def folder(tmp_path, **changes):
  (tmp_path / 'dataset.json').write_text(
    json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not None}), encoding='utf-8'
  )
  return get_spec('folder', str(tmp_path))


def test_btcv_ids_become_transunet_classes():
  s = get_spec('synapse')
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
  s = get_spec('synapse', str(tmp_path))
  assert class_table(s, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, -1]
  assert s.window_hu == (0, 1) and not s.in_hu and get_spec('synapse').in_hu


@pytest.mark.parametrize('name', ['chaos_mr_t1in', 'chaos_mr_t1out', 'chaos_mr_t2'])
def test_chaos_mr_ids_of_both_layouts(tmp_path, name):
  grey = class_table(get_spec(name, str(tmp_path)), 256)
  assert grey[[0, 63, 126, 189, 252]].tolist() == [0, 1, 2, 3, 4]
  assert grey[[1, 90, 150, 220]].tolist() == [-1] * 4
  (tmp_path / 'images').mkdir()
  assert class_table(get_spec(name, str(tmp_path)), 6).tolist() == [0, 1, 2, 3, 4, -1]
  assert get_spec(name).organs == ('liver', 'right_kidney', 'left_kidney', 'spleen')
  assert get_spec(name).window_hu is None and not get_spec(name).in_hu


def test_every_named_set_is_consistent():
  for name in NAMES[:-1]:
    s = get_spec(name)
    assert s.name == name and set(s.raw_ids) == set(s.output_ids) == set(s.organs)
    ids = [i for organ in s.organs for i in s.raw_ids[organ]]
    assert len(ids) == len(set(ids)) and 0 not in ids and s.how_to_get and 'ROOT' in s.layout
  assert get_spec('chaos_ct').raw_ids == {'liver': (255,)}
  assert get_spec('abdomenct1k').raw_ids == dict(liver=(1,), kidney=(2,), spleen=(3,), pancreas=(4,))
  defects = get_spec('abdomenct1k').defects
  assert {'Case_00219', 'Case_00656', 'Case_00078', 'Case_00280', 'Case_00578'} <= defects.keys()
  assert not {'Case_00279', 'Case_00272', 'Case_00573'} & defects.keys() and len(defects) == 22


def test_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'synapse'"):
    get_spec('synpase')


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


def test_the_label_ignore_is_no_organ(tmp_path):
  s = folder(tmp_path, labels={'background': 0, 'liver': 1, 'Ignore': 3, 'spleen': 7})
  assert s.labels == {'liver': 1, 'spleen': 2} and s.output_ids == {'liver': 1, 'spleen': 7}
  assert class_table(s, 8).tolist() == [0, 1, -1, IGNORED, -1, -1, -1, 2]
  assert class_table(s, 3).tolist() == [0, 1, -1]


def test_regions_are_unions_of_classes(tmp_path):
  """The labels of KiTS: kidneys with what grows in them, masses, tumours; ids 1 and 3 have no name of their own."""
  labels = {'background': 0, 'kidney_and_mass': [1, 2, 3], 'mass': [2, 3], 'tumour': 2}
  s = folder(tmp_path, labels=labels, regions_class_order=[1, 3, 2])
  assert s.labels == {'kidney_and_mass_1': 1, 'tumour': 2, 'mass_3': 3}
  assert s.output_ids == {'kidney_and_mass_1': 1, 'tumour': 2, 'mass_3': 3} and s.raw_ids['mass_3'] == (3,)
  assert s.regions == {
    'kidney_and_mass': ('kidney_and_mass_1', 'tumour', 'mass_3'),
    'mass': ('tumour', 'mass_3'),
    'tumour': ('tumour',),
  }
  assert folder(tmp_path, labels={'background': 0, 'liver': [1], 'spleen': 2}).regions == {}


def test_the_channel_name_gives_the_modality_and_the_window(tmp_path):
  for key in ('channel_names', 'modality'):
    for name, modality in (('CT scan', 'CT'), ('CTA', 'CT'), ('t1_in_phase', 'MR')):
      s = folder(tmp_path, **{'channel_names': None, key: {'0': name}})
      assert s.modality == modality and s.in_hu == (modality == 'CT') and s.notes == ()
      assert s.window_hu == ((-125, 275) if s.in_hu else None)
  s = folder(tmp_path, channel_names={'0': 'portal'})
  assert s.modality == 'MR' and s.window_hu is None
  assert len(s.notes) == 1 and "'portal'" in s.notes[0] and 'treated as MR' in s.notes[0]


def test_one_organ_in_two_unicode_forms(tmp_path):
  nfc, nfd = 'F\u00e9mur', 'Fe\u0301mur'
  assert folder(tmp_path, labels={'background': 0, nfd: 3}).organs == (nfc,)
  with pytest.raises(InputError, match='names an organ twice'):
    folder(tmp_path, labels={'background': 0, nfc: 1, nfd: 2})
  with pytest.raises(InputError, match='twice'):
    folder(tmp_path, split={'train': [nfc], 'test': [nfd]})


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
@pytest.mark.parametrize('line_end', ['\n', '\r\n', '\r'])
def test_every_editor_may_have_written_the_description(tmp_path, encoding, line_end):
  text = json.dumps({**GOOD, 'name': 'Bäuche', 'split': {'train': ['a']}}, indent=2, ensure_ascii=False)
  (tmp_path / 'dataset.json').write_bytes(text.replace('\n', line_end).encode(encoding))
  s = get_spec('folder', str(tmp_path))
  assert s.name == 'Bäuche' and s.output_ids == {'liver': 1, 'spleen': 7} and s.splits == {'train': ('a',)}


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(channel_names={'1': 'CT', '2': 'PET'}), 'numbers its channels 1, 2'),
    (dict(channel_names={'0': 'CT', '1': 'T1 CT'}), 'several modalities'),
    (dict(channel_names={'0': 'PET/CT'}), "'PET/CT' names several modalities.*Write .CT. if"),
    (dict(channel_names={'0': 'T1 CT'}), 'several modalities'),
    (dict(channel_names=None), 'no "channel_names"'),
    (dict(labels={'background': 0, 'kidneys': []}), 'List every id'),
    (dict(labels={'background': 0, 'kidneys': [1, 1]}), 'List every id'),
    (dict(labels={'background': 0, 'kidneys': [0, 1]}), 'Id 0, and only 0'),
    (dict(labels={'background': 0, 'kidneys': [1, 'x']}), "id 'x'"),
    (dict(labels={'background': 0, 'a': [1, 2], 'b': [2, 1]}), 'same id'),
    (dict(labels={'background': 0, 'a': [1, 2], 'a_1': 3}), 'stands for the id 1'),
    (dict(labels={'background': 0, 'a': [1, 2], 'a_1': 2}), 'stands for the id 1'),
    (dict(labels={'background': 0, 'a': [1, 2], 'ignore': 2}), '"ignore" has the id 2'),
    (dict(labels={'background': 0, 'a': [1, 2], 'ignore': [3, 4]}), 'several ids for "ignore"'),
    (dict(labels={'background': 0, 'a': [1, 2]}, regions_class_order=[1, 3]), 'regions_class_order'),
    (dict(labels={'background': 0, 'liver': 1, 'ignore': 2, 'IGNORE': 3}), 'two "ignore"'),
    (dict(labels={'background': 0, 'liver': 1, 'ignore': 1}), '"ignore" has the id 1'),
    (dict(labels={'background': 0, 'ignore': 0}), 'Id 0, and only 0'),
    (dict(labels={'background': 0, 'ignore': 1}), 'names no organ'),
    (dict(labels={'background': 0, 'liver': 1.5}), 'id 1.5'),
    (dict(labels={'background': 0, 'liver': True}), 'id True'),
    (dict(labels={'background': 1, 'liver': 0}), 'Id 0, and only 0'),
    (dict(labels={'background': 0, 'liver': 1, 'spleen': 1}), 'same id'),
    (dict(labels={'background': 0}), 'names no organ'),
    (dict(labels=None), 'no "labels"'),
    (dict(file_ending='.mgz'), 'Convert'),
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
    get_spec('folder', str(tmp_path / 'nowhere'))
  with pytest.raises(InputError, match='dataset.json: no such file.*channel_names'):
    get_spec('folder', str(tmp_path))
  (tmp_path / 'dataset.json').write_text('{"labels": ', encoding='utf-8')
  with pytest.raises(InputError, match='dataset.json: is damaged.*valid JSON'):
    get_spec('folder', str(tmp_path))
