"""Models that are handed over: the file, its card, what it keeps to itself, and its way back into a run."""

import json
import os
import shutil
import zipfile

import jax
import numpy as np
import pytest
from conftest import ROOT
from initial_run import small_run
from scored_run import make_run as make_scores

from afw_jax import evaluate, export_model, import_run, predict
from afw_jax import workdir as run_folder
from afw_jax.errors import InputError
from afw_jax.inference.network import Trained
from afw_jax.model_file import archive, content
from afw_jax.training import checkpoint


@pytest.fixture(scope='module')
def quick(handed_over):
  """The 2D run of the model file, and a function that exports without the program and its check."""
  _, (run, _), _ = handed_over

  def export(workdir, output, patch, **options):
    patch.setattr('afw_jax.model_file.program.serialised', lambda meta: b'program')
    patch.setattr('afw_jax.model_file.run.check', lambda path: 'all equal')
    return export_model.export_model([workdir], str(output), **options)[0]

  return run, export


def test_the_file(handed_over):
  model, runs, root = handed_over
  meta = archive.read_meta(model)
  first, second = content.networks_of(model, meta)
  assert meta['organs'] == {'liver': {'class': 1, 'label': 1}, 'spleen': {'class': 2, 'label': 7}}
  assert (first['name'], second['name']) == ('a', 'b') and first['scores'] is None
  assert (first['data_licence'], second['data_licence']) == ('', 'CC BY 4.0')
  assert first['meta']['data']['window'] == 'percentile' and second['meta']['data']['options']['size'] == []
  assert meta['versions']['packages']['jax'] == jax.__version__ and meta['platforms'] == ['cpu', 'cuda', 'tpu']
  with zipfile.ZipFile(model) as file:
    assert {'example/scan.nii.gz', 'example/labels.nii.gz', 'networks/2/weights.safetensors'} <= set(file.namelist())
    everything = b''.join(file.read(name) for name in file.namelist())
  for private in (str(root), str(ROOT), os.path.dirname(str(root)), '"c0"', '"c1"'):
    assert private.encode() not in everything, private


def test_the_card(handed_over):
  model = handed_over[0]
  card = archive.read(model, archive.read_meta(model), 'README.md').decode()
  for said in (
    '# Segmentation of 2 organs in CT scans',
    'unet, unet3d. Their probabilities are averaged.',
    '| liver | 1 | 1 |',
    '| spleen | 2 | 7 |',
    'not a medical device and not for clinical use',
    '(CT); licence: CC BY 4.0',
    'its licence is not recorded',
    'Network 1: not scored.',
    'python model.zip scan.nii.gz labels.nii.gz',
    f'jax {jax.__version__}',
  ):
    assert said in card, said


def test_scores_are_those_of_the_exported_checkpoint(quick, tmp_path, monkeypatch):
  run, export = quick
  shutil.copytree(run, tmp_path / 'run')
  digest = checkpoint.digest(predict.load(run).meta)
  config = json.loads((tmp_path / 'run' / 'config.json').read_text(encoding='utf-8'))
  scored = lambda digest: make_scores(
    tmp_path / 'run', config=config, checkpoint_sha256=digest, split='val', training_split='val'
  )
  for i, (given, shown) in enumerate(((digest, True), ('another', False))):
    scored(given)
    path = export(str(tmp_path / 'run'), tmp_path / f'{i}.zip', monkeypatch)
    meta = archive.read_meta(path)
    card = archive.read(path, meta, 'README.md').decode()
    assert (meta['networks'][0]['scores'] is not None) == shown
    assert ('| liver | 80.00 ± 10.00 [' in card) == ('3 case(s) of the split `val`' in card) == shown
    assert ('also chose the checkpoint' in card) == shown


def test_names_that_people_chose_are_text_in_the_card(quick, tmp_path, monkeypatch):
  run, export = quick
  evil = '<img src=x onerror=alert(1)> | **b**\n# x'
  real = predict.load_all

  def load_all(workdirs, **options):
    (one,) = real(workdirs, **options)
    data = {**one.meta['data'], 'organs': [evil, 'spleen'], 'output_ids': {evil: 1, 'spleen': 7}, 'name': evil}
    return [Trained(one.predict_step, one.variables, {**one.meta, 'data': data})]

  monkeypatch.setattr(predict, 'load_all', load_all)
  path = export(run, tmp_path / 'm.zip', monkeypatch)
  card = archive.read(path, archive.read_meta(path), 'README.md').decode()
  assert '<img' not in card and '**b**' not in card and '\n# x' not in card
  assert '| &lt;img src=x onerror=alert(1)&gt; \\| \\*\\*b\\*\\* # x | 1 | 1 |' in card


def test_outputs_that_cannot_be_used(quick, tmp_path, monkeypatch):
  run, export = quick
  for output in ('model', 'model.npz', 'folder.zip'):
    (tmp_path / 'folder.zip').mkdir(exist_ok=True)
    with pytest.raises(InputError, match='is not the name of a model file'):
      export(run, tmp_path / output, monkeypatch)
  (tmp_path / 'mine.zip').write_bytes(b'photos')
  with pytest.raises(InputError, match='mine.zip: is there already.*--overwrite'):
    export(run, tmp_path / 'mine.zip', monkeypatch)
  assert (tmp_path / 'mine.zip').read_bytes() == b'photos'
  made = export(run, tmp_path / 'mine.zip', monkeypatch, overwrite=True)
  first = (tmp_path / 'mine.zip').read_bytes()
  with pytest.raises(InputError, match='mine.zip: is a model file already'):
    export(made, tmp_path / 'again.zip', monkeypatch)
  with pytest.raises(InputError, match='nowhere: there is no checkpoint in it'):
    export(str(tmp_path / 'nowhere'), tmp_path / 'n.zip', monkeypatch)
  export(run, tmp_path / 'same.zip', monkeypatch)
  assert (tmp_path / 'same.zip').read_bytes() == first
  assert sorted(os.listdir(tmp_path)) == ['folder.zip', 'mine.zip', 'same.zip']


def test_a_program_that_gives_other_labels_is_not_handed_over(handed_over, tmp_path, monkeypatch):
  _, (run, _), _ = handed_over
  write = export_model.files.to_safetensors
  monkeypatch.setattr(
    export_model.files, 'to_safetensors', lambda arrays: write({n: np.roll(a, 1) for n, a in arrays.items()})
  )
  with pytest.raises(InputError, match='m.zip: does not predict here as where it was exported'):
    export_model.export_model([run], str(tmp_path / 'm.zip'))
  assert not os.listdir(tmp_path)


@pytest.fixture(scope='module')
def imported(handed_over, tmp_path_factory):
  folder = tmp_path_factory.mktemp('imported') / 'both'
  return folder, import_run.import_model(handed_over[0], str(folder))


def test_the_way_back(handed_over, imported):
  model, runs, _ = handed_over
  folder, workdirs = imported
  assert workdirs == [str(folder / '1'), str(folder / '2')] and os.listdir(folder.parent) == ['both']
  for workdir, run in zip(workdirs, runs):
    ours, theirs = predict.load(workdir), predict.load(run)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert ours.meta['source'] == f'model.zip: {os.path.basename(run)}, step 0'
    config = run_folder.recorded_config(workdir)
    assert not run_folder.differences(json.loads(config.to_json_best_effort()), run_folder.read_config(run))
  with pytest.raises(InputError, match='has the same checkpoint as'):
    predict.load_all([runs[0], workdirs[0]])


def test_an_imported_run_is_scored(handed_over, imported):
  _, runs, root = handed_over
  config = small_run(root, **{'data.fit': 'crop_pad', 'data.window': 'percentile'})
  workdir, store = imported[1][0], run_folder.store_path(config, runs[0])
  evaluate.evaluate(config, workdir, store)
  assert len(os.listdir(os.path.join(workdir, 'cases'))) == 1


@pytest.mark.parametrize('name', ['full', 'file'])
def test_a_workdir_that_is_in_use(handed_over, tmp_path, name):
  (tmp_path / 'full').mkdir()
  for there in ('full/mine.txt', 'file'):
    (tmp_path / there).write_bytes(b'mine')
  with pytest.raises(InputError, match=f'{name}: is there already'):
    import_run.import_model(handed_over[0], str(tmp_path / name))
  assert sorted(os.listdir(tmp_path)) == ['file', 'full'] and os.listdir(tmp_path / 'full') == ['mine.txt']


def test_a_failed_import_leaves_nothing(handed_over, tmp_path, monkeypatch):
  def full(*_):
    raise InputError('disk', 'is full', 'Free space.')

  monkeypatch.setattr('afw_jax.training.checkpoint_writer.save', full)
  with pytest.raises(InputError, match='is full'):
    import_run.import_model(handed_over[0], str(tmp_path / 'new'))
  with pytest.raises(InputError, match='nowhere.zip: does not exist'):
    import_run.import_model(str(tmp_path / 'nowhere.zip'), str(tmp_path / 'new'))
  assert not os.listdir(tmp_path)
