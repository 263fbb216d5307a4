"""The networks of a model file, loaded as those of runs."""

import json
import zipfile

import jax
import numpy as np
import pytest

from afw_jax import predict
from afw_jax.errors import InputError
from afw_jax.model_file import archive, networks
from afw_jax.weights import files


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_model_file_is_loaded_as_its_runs(handed_over):
  model, runs, _ = handed_over
  assert networks.names(model) == [f'{model}/1', f'{model}/2'] and networks.names(runs[0]) == [runs[0]]
  loaded, live = predict.load_all([model]), predict.load_all(runs)
  for ours, theirs in zip(loaded, live, strict=True):
    same(ours.variables, theirs.variables)
    assert ours.organs == theirs.organs and ours.input_size == theirs.input_size
  second = predict.load(f'{model}/2')
  assert second.organs == ('spleen', 'liver') and len(second.input_size) == 3
  same(second.variables, live[1].variables)


def test_label_maps_of_the_run_are_those_of_the_model_file(handed_over, tmp_path):
  model, runs, root = handed_over
  source = root / 'images' / 'c0.nii.gz'
  first = predict.predict_all(runs, source, tmp_path / 'out')
  again = predict.predict_all(model, source, tmp_path / 'out')
  assert first.skipped == 0 and again.skipped == 1
  (row,) = predict.predict_all(model, source, tmp_path / 'new').rows
  assert [made['workdir'] for made in row['checkpoint']['average_of']] == [f'{model}/1', f'{model}/2']
  assert row['volume_ml'] == first.rows[0]['volume_ml']


@pytest.mark.parametrize('name, said', [
  ('{model}', 'model.zip: holds 2 networks. Name one of them'),
  ('{model}/3', 'model.zip/3: is not there: .*model.zip holds 2 networks'),
  ('{model}/0', 'is not there'),
])  # fmt: skip
def test_one_network_of_several_has_to_be_named(handed_over, name, said):
  with pytest.raises(InputError, match=said):
    predict.load(name.format(model=handed_over[0]))


def test_what_is_not_in_a_model_file(handed_over, tmp_path):
  model, runs, root = handed_over
  path = change(model, tmp_path / 'best.zip', checkpoint='best')
  with pytest.raises(InputError, match="best.zip/1: holds the checkpoint 'best' alone"):
    predict.load(f'{path}/1', which='last')
  with pytest.raises(InputError, match='has the same checkpoint as'):
    predict.load_all([runs[0], f'{model}/1'])
  (tmp_path / 'scan.zip').write_bytes(b'no zip')
  with pytest.raises(InputError, match='scan.zip: is not a complete model file'):
    predict.predict(tmp_path / 'scan.zip', root / 'images', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('weights, said', [
  (lambda arrays: b'no weights', 'is not a complete .safetensors file'),
  (lambda arrays: files.to_safetensors(arrays)[:-4], 'is not a complete .safetensors file'),
  (lambda arrays: dict(list(arrays.items())[1:]), '1 arrays are not those of the network'),
  (lambda arrays: arrays | {'more': np.zeros(1, np.float32)}, r"1 arrays are .*; more is \(\(1,\), 'float32'\), not"),
  (lambda arrays: {name: a.astype(np.float64) for name, a in arrays.items()}, 'float64'),
  (lambda arrays: {name: a.ravel() for name, a in arrays.items()}, 'arrays are not those of the network'),
])  # fmt: skip
def test_weights_of_something_else(handed_over, tmp_path, weights, said):
  path = change(handed_over[0], tmp_path / 'm.zip', weights=weights)
  with pytest.raises(InputError, match=f'm.zip/networks/1/weights.safetensors: .*{said}'):
    predict.load(f'{path}/1')


@pytest.mark.parametrize('model, said', [
  ({'name': 'unet', 'num_classes': 3, 'options': {'depth': 9}, 'input_size': [32, 32]}, 'no such option'),
  ({'name': 'vnet', 'num_classes': 3, 'options': {}, 'input_size': [32, 32]}, 'no network has this name'),
  ({'name': 'unet', 'num_classes': 3, 'options': {'features': [9, 9]}, 'input_size': [32, 32]}, 'not those of the'),
])  # fmt: skip
def test_a_network_that_is_not_there(handed_over, tmp_path, model, said):
  path = change(handed_over[0], tmp_path / 'm.zip', model=model)
  with pytest.raises(InputError, match=said):
    predict.load(f'{path}/1')


def change(model, path, /, *, weights=lambda arrays: arrays, **meta):
  """Copies a model file with other weights or another meta of its first network, and right digests."""
  content = archive.read_meta(model)
  with zipfile.ZipFile(model) as old:
    members = {name: old.read(name) for name in content['members']}
  first = content['networks'][0]
  data = weights(files.parse_safetensors(members[first['weights']], model))
  members[first['weights']] = data if isinstance(data, bytes) else files.to_safetensors(data)
  first['meta'] |= meta
  kept = {key: value for key, value in content.items() if key not in ('format', 'version', 'members')}
  archive.write(str(path), members.items(), json.loads(json.dumps(kept)), verify=lambda path: None)
  return path
