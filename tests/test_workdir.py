"""A workdir belongs to one config, as far as the config affects training, and to one run at a time."""

import concurrent.futures
import errno
import json
import logging
import time

import pytest

from afw_jax import workdir
from afw_jax.errors import InputError
from afw_jax.system import locks
from afw_jax.system.atomic_files import process_name
from configs import demo


def claim(path, config):
  with workdir.claimed(str(path), config):
    pass


def contents(path, but=('.claiming',)):
  """Path -> bytes of every file but .claiming, which holds the name of the last process that tried, and the time."""
  return {p.relative_to(path): p.read_bytes() for p in path.rglob('*') if p.is_file() and p.name not in but}


@pytest.fixture
def begun(tmp_path):
  """A workdir in which the demo's training has begun."""
  claim(tmp_path, demo.get_config())
  (tmp_path / 'checkpoints' / 'last' / '1').mkdir(parents=True)
  return tmp_path


def test_options_that_do_not_affect_training_may_change(begun):
  config = demo.get_config()
  config.eval.overlap, config.mesh.spatial, config.runtime.prefetch, config.data.root = 0.25, 2, 5, 'elsewhere'
  config.runtime.matmul_precision = 'highest'
  config.model.unetr.feature_size, config.loss.ce_dice.recipe, config.augment.volume.brightness = 32, 'released', 0.5
  claim(begun, config)
  older = json.loads((begun / 'config.json').read_text(encoding='utf-8'))
  del older['model']['unetr'], older['loss']['tversky']  # a version that did not have them
  (begun / 'config.json').write_text(json.dumps(older), encoding='utf-8')
  claim(begun, config)


def test_options_that_a_later_version_added_have_their_defaults(begun):
  older = json.loads((begun / 'config.json').read_text(encoding='utf-8'))
  for key in ('weights', 'background', 'tau'):
    del older['loss']['ce_afw'][key]
  del older['model']['unet']['head_kernel'], older['seed']
  (begun / 'config.json').write_text(json.dumps(older), encoding='utf-8')
  config = demo.get_config()
  config.loss.ce_afw.weights, config.seed = 'entropic', 1
  with pytest.raises(InputError, match="weights was 'learned', is 'entropic'; seed was 0, is 1"):
    claim(begun, config)
  claim(begun, demo.get_config())


def test_options_that_affect_training_may_not(begun):
  config = demo.get_config()
  config.model.unet.head_kernel, config.loss.name, config.train.epochs = 3, 'ce_dice', 7
  locks_held = ('.claiming', '.lock')  # by this process again, a moment later
  before = contents(begun, but=locks_held)
  with pytest.raises(InputError, match='another --workdir') as error:
    claim(begun, config)
  for said in (
    'model.unet.head_kernel was 1, is 3',
    "loss.name was 'ce_afw', is 'ce_dice'",
    'train.epochs was',
    'loss.ce_dice.recipe was',
  ):
    assert said in str(error.value)
  assert contents(begun, but=locks_held) == before


def test_a_workdir_belongs_to_one_fold(begun):
  older = json.loads((begun / 'config.json').read_text(encoding='utf-8'))
  del older['data']['fold']  # a version without folds
  (begun / 'config.json').write_text(json.dumps(older), encoding='utf-8')
  claim(begun, demo.get_config())
  config = demo.get_config()
  config.data.fold = '2/5'
  with pytest.raises(InputError, match="data.fold was '', is '2/5'"):
    claim(begun, config)


def test_where_nothing_was_trained_a_new_config_takes_over(tmp_path):
  config = demo.get_config()
  claim(tmp_path, config)
  config.seed = 5
  claim(tmp_path, config)
  assert workdir.read_config(str(tmp_path))['seed'] == 5


@pytest.mark.parametrize('seed', [0, 5])
def test_a_workdir_in_use_is_refused_before_anything_is_written(tmp_path, monkeypatch, seed):
  monkeypatch.setattr(workdir, '_PATIENCE_S', 0.1)
  other = demo.get_config()
  other.seed = seed
  with workdir.claimed(str(tmp_path), demo.get_config()):
    before = contents(tmp_path)
    for hold in (True, False):
      with (
        pytest.raises(InputError, match='in use by another process') as error,
        workdir.claimed(str(tmp_path), other, hold=hold),
      ):
        pass
      assert 'lock' not in str(error.value) and 'remove' not in str(error.value)
    assert contents(tmp_path) == before
  claim(tmp_path, other)


def test_many_tasks_of_an_array_may_claim_it_at_once(tmp_path, monkeypatch):
  found_out = lambda: time.sleep(0.3) or {}  # versions and devices, which takes long on a GPU machine
  monkeypatch.setattr(workdir, 'environment', found_out)
  monkeypatch.setattr(workdir, '_PATIENCE_S', 3)

  def task(_):
    with workdir.claimed(str(tmp_path), demo.get_config(), hold=False):
      return True

  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    assert all(pool.map(task, range(32)))


def test_the_one_that_holds_it_is_named(tmp_path):
  (tmp_path / '.lock').write_text('a-run-that-ended-long-ago')
  with workdir.claimed(str(tmp_path), demo.get_config()), pytest.raises(InputError, match=process_name()):
    claim(tmp_path, demo.get_config())


def test_preparations_claim_it_for_a_moment_only(tmp_path):
  with (
    workdir.claimed(str(tmp_path), demo.get_config(), hold=False),
    workdir.claimed(str(tmp_path), demo.get_config(), hold=False),
    workdir.claimed(str(tmp_path), demo.get_config()),
  ):
    pass


def test_a_disk_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOTSUP, 'not supported')

  monkeypatch.setattr(locks.fcntl, 'flock', flock)
  with caplog.at_level(logging.WARNING, 'afw_jax'), workdir.claimed(str(tmp_path), demo.get_config()):
    assert (tmp_path / 'config.json').exists()
  assert [r.getMessage() for r in caplog.records] == [
    f'{tmp_path} cannot be locked on this file system: make sure that no two runs use it'
  ]


def test_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  claim('~/run', demo.get_config())
  assert (tmp_path / 'run' / 'config.json').exists()


def test_a_workdir_of_no_run(tmp_path):
  claim(tmp_path / 'synapse', demo.get_config())
  with pytest.raises(InputError, match='no config.json.*Did you mean .*synapse'):
    workdir.read_config(str(tmp_path / 'synapze'))
