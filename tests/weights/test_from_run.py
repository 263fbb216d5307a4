"""Training that starts from another run: what is taken, what is new, what is refused, and resuming without it."""

import json
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dataset
from changing_data import prepare_run, run_here
from initial_run import make_run, small_run

from afw_jax import export_model, models, train
from afw_jax import workdir as run_folder
from afw_jax.config import build, initial
from afw_jax.config.check import check_config
from afw_jax.config.program import make_program
from afw_jax.data import run_record
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.training import checkpoint
from afw_jax.weights import from_run

ORGANS = ('liver', 'spleen')


def trained_alike(state):
  """A state with weights of the loss and statistics that are not the initial ones."""
  params = {**state.params, 'log_sigma_sq': jnp.array([0.1, 0.2, 0.3])}
  return state._replace(params=params, batch_stats=jax.tree.map(lambda a: a + 0.5, state.batch_stats))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny_dataset.make(tmp_path_factory.mktemp('data'), n=4)


@pytest.fixture(scope='module')
def other(data, tmp_path_factory):
  """The workdir of a run on liver and spleen."""
  return make_run(small_run(data, seed=7), tmp_path_factory.mktemp('runs') / 'other', change=trained_alike)


@pytest.fixture(scope='module')
def apply(data):
  """The network for two organs, compiled: (params, batch_stats) -> logits of an image."""
  model, _ = build.network(small_run(data), 3)
  image = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
  return jax.jit(lambda params, batch_stats: model.apply({'params': params, 'batch_stats': batch_stats}, image))


@pytest.fixture(scope='module')
def model_file(other, tmp_path_factory):
  """A model file with that run, without the program in it."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('afw_jax.model_file.program.serialised', lambda meta: b'program')
    patch.setattr('afw_jax.model_file.run.check', lambda path: '')
    patch.setattr(export_model, '_example', lambda trained: iter(()))
    return export_model.export_model([other], str(tmp_path_factory.mktemp('model') / 'model.zip'))[0]


def network_of(data):
  return from_run.Network('unet', build.network(small_run(data), 3)[1], (32, 32))


def fresh(data, num_classes):
  """(params, batch_stats) of a network and its loss before any training."""
  rng, model = np.random.default_rng(1), build.network(small_run(data), num_classes)[0]
  shapes = models.abstract_variables(model, (1, 32, 32, 1))
  variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)
  return {'net': variables['params'], 'log_sigma_sq': np.zeros(num_classes, np.float32)}, variables['batch_stats']


def loaded(data, other, organs):
  """(params, batch_stats) for a run on these organs that starts from the other."""
  return from_run.load(other, network_of(data), organs, *fresh(data, len(organs) + 1))[:2]


def variables_of(workdir):
  return trained.read_variables(workdir)[0]


def test_the_same_organs_give_the_network_of_the_other_run(data, other, apply):
  config = small_run(data, **{'model.init_from': other})
  program = make_program(config, build.mesh(config), ('background', *ORGANS), 1)
  state, wanted = initial.initial_state(config, program, ORGANS, jax.random.key(0)), variables_of(other)
  logits = apply(wanted['params'], wanted['batch_stats'])
  assert np.ptp(logits) > 0
  np.testing.assert_array_equal(apply(state.params['net'], state.batch_stats), logits)
  np.testing.assert_array_equal(state.params['log_sigma_sq'], np.float32([0.1, 0.2, 0.3]))
  assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  alike = lambda a, b: (a.shape, a.dtype, a.sharding.is_equivalent_to(b.sharding, a.ndim)) == (b.shape, b.dtype, True)
  assert jax.tree.all(jax.tree.map(alike, state, program.abstract_state()))  # so the train step takes it, on any mesh


def test_another_order_of_the_organs_is_followed(data, other, apply):
  params, batch_stats = loaded(data, other, ORGANS[::-1])
  wanted = variables_of(other)
  logits = apply(wanted['params'], wanted['batch_stats'])
  np.testing.assert_allclose(apply(params['net'], batch_stats), logits[..., np.array([0, 2, 1])], atol=1e-6)
  np.testing.assert_array_equal(params['log_sigma_sq'], np.float32([0.1, 0.3, 0.2]))


def test_a_model_file_gives_its_network_and_no_weights_of_the_loss(data, other, model_file, caplog):
  check_config(small_run(data, **{'model.init_from': model_file}))
  for organs in (ORGANS[::-1], ('liver', 'kidney')):
    with caplog.at_level(logging.INFO, logger='afw_jax'):
      params, batch_stats = loaded(data, model_file, organs)
    theirs, theirs_stats = loaded(data, other, organs)
    jax.tree.map(np.testing.assert_array_equal, (params['net'], batch_stats), (theirs['net'], theirs_stats))
    assert not np.any(params['log_sigma_sq']) and params['log_sigma_sq'].shape == (3,)
  assert 'new are the weights of the loss, which a model file does not have' in caplog.text


@pytest.mark.parametrize('changes, said', [
  ({'model.name': 'unetpp'}, 'model.zip: is a run of unet, and this one trains unetpp'),
  ({'model.unet.features': (4, 4, 4, 4, 8)}, r'Give the same options as in .*model.zip/meta.json'),
  ({'model.init_from': '{}/2'}, r'model.init_from=.*model.zip/2: is not there'),
])  # fmt: skip
def test_model_files_that_cannot_be_started_from_are_refused_before_any_work(data, model_file, changes, said):
  changes = {key: v.format(model_file) if isinstance(v, str) else v for key, v in changes.items()}
  with pytest.raises(InputError, match=said):
    check_config(small_run(data, **{'model.init_from': model_file} | changes))


def test_that_the_scans_of_a_training_are_not_known_is_a_warning(data, other, model_file, caplog):
  record = json.loads(json.dumps(trained.read_meta(other, 'last')[1]['data']))
  for path in (other, model_file):
    seen = initial.seen_before(small_run(data, **{'model.init_from': path}), None, record)
  assert seen == {'seen_before': {'train': [], 'val': []}}
  (said,) = [record.getMessage() for record in caplog.records]
  assert said.startswith(f'{model_file} does not say which scans it was trained with')


@pytest.mark.parametrize('organs', [('liver', 'kidney'), ('liver', 'kidney', 'spleen'), ('liver',)])
def test_other_organs_give_the_body_and_a_new_head_and_say_so(data, other, organs, caplog):
  with caplog.at_level(logging.INFO, logger='afw_jax'):
    params, batch_stats = loaded(data, other, organs)
  random, _ = fresh(data, len(organs) + 1)
  theirs = variables_of(other)
  head = from_run.head_leaves(network_of(data), len(organs) + 1)
  assert sum(jax.tree.leaves(head)) == 2
  flat = [jax.tree.leaves(tree) for tree in (head, params['net'], random['net'], theirs['params'])]
  for inside, now, new, taken in zip(*flat, strict=True):
    np.testing.assert_array_equal(now, new if inside else taken)
    assert inside or not np.array_equal(now, new)
  assert not np.any(params['log_sigma_sq']) and params['log_sigma_sq'].shape == (len(organs) + 1,)
  jax.tree.map(np.testing.assert_array_equal, batch_stats, theirs['batch_stats'])
  (said,) = [record.getMessage() for record in caplog.records if 'starts from' in record.getMessage()]
  assert 'the organs differ' in said
  assert ('only here: kidney' in said) == ('kidney' in organs)
  assert ('only there: spleen' in said) == ('spleen' not in organs)


@pytest.mark.parametrize('name', models.MODELS)
def test_the_heads_of_every_network_have_an_axis_of_classes(name):
  size = models.module_of(name).smallest_image(models.build(name, 3, size='testing'))[1:-1]
  found = from_run.Network(name, {'size': 'testing'}, size).variables(5)
  axes = {path: (leaf.shape, axis) for path, (leaf, axis) in found.items() if axis is not None}
  assert axes and all(shape[axis] == 5 and axis == len(shape) - 1 for shape, axis in axes.values()), axes
  assert all(path[0] == 'params' for path in axes)


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'model.name': 'unetpp'}, 'is a run of unet, and this one trains unetpp'),
    ({'model.unet.features': (4, 4, 4, 4, 8)}, r'is \(.*\), not \('),
    ({'model.unet.recipe': 'released'}, r'is \(3, 3, 1, 4\), not \(3, 3, 3, 4\)'),
    ({'model.unet.features': (4, 4, 4, 4)}, 'is missing'),
    ({'model.pretrained': 'file.npz'}, 'model.pretrained too'),
    ({'model.init_from': 'no/such/run'}, 'model.init_from=no/such/run: there is no checkpoint'),
    ({'optimizer.head_learning_rate_factor': -1.0}, 'head_learning_rate_factor: is -1'),
    ({'optimizer.body_learning_rate_factor': float('nan')}, 'body_learning_rate_factor: is nan'),
  ],
)
def test_what_cannot_be_started_from_is_refused_before_any_work(data, other, changes, said):
  with pytest.raises(InputError, match=said):
    check_config(small_run(data, **{'model.init_from': other} | changes))


def test_a_damaged_checkpoint_is_refused(data, other, tmp_path):
  copy = pathlib.Path(shutil.copytree(other, tmp_path / 'copy'))
  for path in (copy / 'checkpoints').rglob('d/*'):
    path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(InputError, match='copy'):
    loaded(data, str(copy), ORGANS)


def test_a_run_goes_on_when_the_other_is_gone(data, other, tmp_path, monkeypatch):
  monkeypatch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run_here)
  gone, workdir = str(shutil.copytree(other, tmp_path / 'gone')), str(tmp_path / 'run')
  config = small_run(data, **{'model.init_from': gone, 'train.epochs': 1, 'train.steps_per_epoch': 1})
  make_run(config, workdir, total_steps=1, change=lambda state: state._replace(step=state.step + 1))
  before = trained.read_meta(gone, 'last')[1]['data']
  shutil.rmtree(gone)
  with pytest.raises(InputError, match=f'model.init_from={gone}'):
    check_config(config)
  check_config(config, fresh=not run_folder.begun(workdir))
  with run_folder.claimed(workdir, config):
    train.train(config, workdir, prepare_run(config, workdir))
  meta = trained.read_meta(workdir, 'last')[1]
  assert meta['step'] == 1 and meta['config']['model']['init_from'] == gone
  # Scans that the other run was trained with are known to this one, and to those that start from it.
  seen = [before['scans'][case_id] for case_id in before['splits']['train']]
  assert meta['data']['seen_before']['train'] == sorted(seen)
  assert set(run_record.seen_scans(meta['data'])['train']) >= set(seen)


def test_cases_that_the_other_run_was_trained_with_are_named(data, other, caplog):
  record = json.loads(json.dumps(trained.read_meta(other, 'last')[1]['data']))
  splits = record['splits']
  moved = {**record, 'splits': {'train': splits['val'], 'val': splits['train'][:1], 'test': splits['train'][1:]}}
  config = small_run(data, **{'model.init_from': other})
  with caplog.at_level(logging.WARNING, logger='afw_jax'):
    initial.seen_before(config, None, record)
    assert not caplog.records
    initial.seen_before(config, None, moved)
  assert splits['train'][0] in caplog.records[0].getMessage() and '--mode=evaluate refuses' in caplog.text
  assert initial.seen_before(config, {'data': record}, record) == {}  # of a run that has begun: what it recorded


def test_factors_of_one_change_nothing(data):
  plain = build.sgd(small_run(data), lambda _: 0.1, 3)
  assert len(plain.init({'net': {'a': jnp.ones(2)}, 'log_sigma_sq': jnp.zeros(3)})) == 3  # the chain of before


@pytest.mark.parametrize('head, body', [(1.0, 0.1), (0.0, 0.5), (10.0, 0.0)])
def test_factors_scale_the_learning_rate_of_head_and_body(data, head, body):
  decay = {'optimizer.weight_decay': 0.1}
  changes = {'optimizer.head_learning_rate_factor': head, 'optimizer.body_learning_rate_factor': body}
  params = jax.tree.map(np.ones_like, fresh(data, 3)[0])
  scaled, plain = (
    tx.update(params, tx.init(params), params)[0]
    for tx in (build.sgd(small_run(data, **decay, **more), lambda _: 0.1, 3) for more in (changes, {}))
  )
  check = lambda inside, a, b: np.testing.assert_allclose(a, b * (head if inside else body), rtol=1e-6)
  jax.tree.map(check, from_run.head_leaves(network_of(data), 3), scaled['net'], plain['net'])
  np.testing.assert_array_equal(scaled['log_sigma_sq'], plain['log_sigma_sq'])


def test_loss_and_optimizer_are_read_only_where_they_are_wanted(other):
  assert variables_of(other).keys() == {'params', 'batch_stats', 'log_sigma_sq'}
  network = trained.load(other)
  assert network.variables.keys() == {'params', 'batch_stats'}
  assert os.path.isdir(other) and checkpoint.steps_in(os.path.join(other, 'checkpoints', 'last')) == [0]


def test_a_run_of_another_number_of_channels_is_refused(data, other, tmp_path):
  network = from_run.Network('unet', build.network(small_run(data), 3)[1], (32, 32), channels=2)
  with pytest.raises(
    InputError, match=r'its scans have 1 channel\(s\), and those of this run 2. Start from a run with as'
  ):
    from_run.load(other, network, ORGANS, *fresh(data, 3))
  from_run.check(other, network._replace(channels=None))  # before the data is known


def test_a_run_of_several_channels_starts_from_one_of_as_many(data, monkeypatch):
  """Its arrays are taken; with the channels in another order it is refused, of other channels there is a warning."""
  from afw_jax.config import initial

  network = from_run.Network('unet', build.network(small_run(data), 3)[1], (32, 32), channels=2)
  of = lambda *names: {
    'modality': 'CT',
    'source': 'nifti',
    'channels': [[n, 'CT' if n == 'CT' else 'MR'] for n in names],
  }
  model = {'name': 'unet', 'options': network.options, 'input_size': (32, 32), 'num_classes': 3}
  meta = {'model': model, 'data': {'options': of('CT', 'PET')}}
  for ours in (network, network._replace(channels=None)):
    taken, new = from_run._match('run', ours, meta, 3, heads=True)
    assert not new and set(taken) == set(network.variables(3))
  said = []
  monkeypatch.setattr(initial._log, 'warning', lambda text, *values: said.append(text % values))
  initial._compare_channels('run', of('CT', 'PET'), of('CT', 'PET'))
  assert not said
  initial._compare_channels('run', of('CT', 'PET'), of('T1', 'T2'))
  assert said == ['run was trained on other channels: CT, PET there, T1, T2 here']
  with pytest.raises(InputError, match='has the channels CT, PET, and this run has them as PET, CT'):
    initial._compare_channels('run', of('CT', 'PET'), of('PET', 'CT'))
