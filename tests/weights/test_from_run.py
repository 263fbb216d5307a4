"""Training that starts from another run: what is taken, what is new, what is refused, and resuming without it."""

import contextlib
import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_dataset
from changing_data import prepare_run, run_here
from initial_run import make_run, small_run

from afw_jax import models, train
from afw_jax import workdir as run_folder
from afw_jax.config import build, initial
from afw_jax.config.check import check_config
from afw_jax.config.program import make_program
from afw_jax.errors import InputError
from afw_jax.inference import trained
from afw_jax.training import checkpoint, step
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
  """The workdir of a run on liver and spleen, with seed 7."""
  return make_run(small_run(data, seed=7), tmp_path_factory.mktemp('runs') / 'other', change=trained_alike)


def started(config, organs=ORGANS):
  """(the initial state of a config, its program)."""
  program = make_program(config, build.mesh(config), ('background', *organs), 1)
  return initial.initial_state(config, program, organs, jax.random.key(config.seed)), program


def variables_of(workdir):
  return trained.read_variables(workdir)[0]


def equal(a, b):
  return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)))


def test_the_same_organs_give_the_network_of_the_other_run(data, other):
  state, program = started(small_run(data, **{'model.init_from': other}))
  image = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
  wanted = variables_of(other)
  np.testing.assert_array_equal(
    program.model.apply(step.variables_of(state), image),
    program.model.apply({k: wanted[k] for k in ('params', 'batch_stats')}, image),
  )
  np.testing.assert_array_equal(state.params['log_sigma_sq'], np.float32([0.1, 0.2, 0.3]))
  assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  abstract = program.abstract_state()
  alike = lambda a, b: (a.shape, a.dtype, a.sharding.is_equivalent_to(b.sharding, a.ndim)) == (b.shape, b.dtype, True)
  assert jax.tree.all(jax.tree.map(alike, state, abstract))


def test_another_order_of_the_organs_is_followed(data, other):
  state, program = started(small_run(data, **{'model.init_from': other}), ORGANS[::-1])
  image = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
  wanted = variables_of(other)
  logits = program.model.apply({k: wanted[k] for k in ('params', 'batch_stats')}, image)
  np.testing.assert_allclose(program.model.apply(step.variables_of(state), image), logits[..., [0, 2, 1]], atol=1e-6)
  np.testing.assert_array_equal(state.params['log_sigma_sq'], np.float32([0.1, 0.3, 0.2]))


@pytest.mark.parametrize('organs', [('liver', 'kidney'), ('liver', 'kidney', 'spleen'), ('liver',)])
def test_other_organs_give_the_body_and_a_new_head_and_say_so(data, other, organs, caplog):
  config = small_run(data, **{'model.init_from': other})
  with caplog.at_level(logging.INFO, logger='afw_jax'):
    state, program = started(config, organs)
  random = program.initial_state(jax.random.key(config.seed))
  wanted = variables_of(other)['params']
  head = from_run.head_leaves(from_run.Network('unet', program.model_options, (32, 32)), len(organs) + 1)
  taken = {True: 0, False: 0}
  for in_head, ours, fresh, theirs in zip(
    *(jax.tree.leaves(tree) for tree in (head, state.params['net'], random.params['net'], wanted)), strict=True
  ):
    np.testing.assert_array_equal(ours, fresh if in_head else theirs)
    taken[in_head] += 1
  assert taken[True] == 2 and taken[False] > 20
  assert not np.any(state.params['log_sigma_sq']) and state.params['log_sigma_sq'].shape == (len(organs) + 1,)
  assert equal(state.batch_stats, variables_of(other)['batch_stats'])
  (said,) = [record.getMessage() for record in caplog.records if 'starts from' in record.getMessage()]
  assert 'the organs differ' in said
  assert ('only here: kidney' in said) == ('kidney' in organs) and ('only there: spleen' in said) == (
    'spleen' not in organs
  )


@pytest.mark.parametrize('name', models.MODELS)
def test_the_heads_of_every_network_have_an_axis_of_classes(name):
  size = models.module_of(name).smallest_image(models.build(name, 3, size='testing'))[:-1]
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
    ({'model.unet.features': (4, 4, 4, 4)}, 'is not needed'),
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
  copy = shutil.copytree(other, tmp_path / 'copy')
  for path in (copy / 'checkpoints').rglob('d/*'):
    path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(InputError, match='copy'):
    started(small_run(data, **{'model.init_from': str(copy)}))


def trained_here(config, workdir):
  """Trains in this process, as --mode=train does."""
  check_config(config, fresh=not run_folder.begun(workdir))
  with run_folder.claimed(workdir, config):
    train.train(config, workdir, prepare_run(config, workdir))
  return trained.read_meta(workdir, 'last')[1]


def test_a_run_goes_on_when_the_other_is_gone(data, other, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr('afw_jax.data.preparation.worker_pool.run_jobs', run_here)
  gone = str(shutil.copytree(other, tmp_path / 'gone'))
  config = small_run(
    data,
    **{'model.init_from': gone, 'train.epochs': 2, 'train.steps_per_epoch': 1, 'data.split_seed': 3},
    **{'optimizer.body_learning_rate_factor': 0.0, 'optimizer.weight_decay': 0.1},
  )
  stop = {'at': 1}
  asked = lambda done: 130 if done == stop['at'] else None
  monkeypatch.setattr('afw_jax.train.signals.graceful_shutdown', lambda: contextlib.nullcontext(asked))
  with pytest.raises(SystemExit):
    trained_here(config, str(tmp_path / 'run'))
  shutil.rmtree(gone)
  stop['at'] = None
  meta = trained_here(config, str(tmp_path / 'run'))
  assert meta['step'] == 2 and meta['config']['model']['init_from'] == gone
  assert trained_here(config, str(tmp_path / 'run'))['step'] == 2  # finished
  # The body was frozen, also for weight decay, and the head was not.
  ours, theirs = (variables_of(where)['params'] for where in (str(tmp_path / 'run'), other))
  program = make_program(config, build.mesh(config), ('background', *ORGANS), 1)
  head = from_run.head_leaves(from_run.Network('unet', program.model_options, (32, 32)), 3)
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), ours, theirs)
  assert jax.tree.all(jax.tree.map(lambda inside, kept: kept != inside, head, same))
  # Scans that the other run was trained with are known to this one, and to those that start from it.
  seen = meta['data']['seen_before']
  before = trained.read_meta(other, 'last')[1]['data']
  assert seen['train'] == sorted(before['scans'][case_id] for case_id in before['splits']['train'])


def test_cases_that_the_other_run_was_trained_with_are_named(data, other, caplog):
  record = json.loads(json.dumps(trained.read_meta(other, 'last')[1]['data']))
  splits = record['splits']
  moved = {**record, 'splits': {'train': splits['val'], 'val': splits['train'][:1], 'test': splits['train'][1:]}}
  config = small_run(data, **{'model.init_from': other})
  with caplog.at_level(logging.WARNING, logger='afw_jax'):
    initial.seen_before(config, None, record)
    assert not caplog.records
    initial.seen_before(config, None, moved)
  assert [splits['train'][0] in r.getMessage() for r in caplog.records][:1] == [True]
  assert initial.seen_before(config, {'data': record}, record) == {}  # of a run that has begun: what it recorded


def test_factors_of_one_change_nothing(data):
  config = small_run(data)
  plain = build.sgd(config, lambda _: 0.1, 3)
  params = {'net': {'a': jnp.ones(2)}, 'log_sigma_sq': jnp.zeros(3)}
  assert len(plain.init(params)) == 3  # the chain of before


@pytest.mark.parametrize('head, body', [(1.0, 0.1), (10.0, 1.0), (0.0, 0.5)])
def test_factors_scale_the_learning_rate_of_head_and_body(data, head, body):
  changes = {'optimizer.head_learning_rate_factor': head, 'optimizer.body_learning_rate_factor': body}
  scaled, plain = (build.sgd(small_run(data, **more), lambda _: 0.1, 3) for more in (changes, {}))
  config = small_run(data)
  state, program = started(config)
  grads = jax.tree.map(jnp.ones_like, state.params)
  updates = [tx.update(grads, tx.init(state.params), state.params)[0] for tx in (scaled, plain)]
  head_of = from_run.head_leaves(from_run.Network('unet', program.model_options, (32, 32)), 3)
  check = lambda inside, a, b: np.testing.assert_allclose(a, b * (head if inside else body), rtol=1e-6)
  jax.tree.map(check, head_of, updates[0]['net'], updates[1]['net'])
  np.testing.assert_array_equal(updates[0]['log_sigma_sq'], updates[1]['log_sigma_sq'])


def test_loss_and_optimizer_are_read_only_where_they_are_wanted(other):
  assert variables_of(other).keys() == {'params', 'batch_stats', 'log_sigma_sq'}
  network = trained.load(other)
  assert network.variables.keys() == {'params', 'batch_stats'}
  assert os.path.isdir(other) and checkpoint.steps_in(os.path.join(other, 'checkpoints', 'last')) == [0]
