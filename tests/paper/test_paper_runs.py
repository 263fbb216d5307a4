"""The command line of a run gives its config again, and a folder with another run is refused."""

import json
import sys

import pytest
from absl import flags
from marks import SLOW
from ml_collections import config_flags

from afw_jax import command_line, losses
from afw_jax.config.check import check_config
from afw_jax.errors import InputError
from afw_jax.paper import tables
from afw_jax.paper.runs import arguments, check_folder, distinct, flat, make_run, members, shown_command
from configs import paper as config_file


def runs(variant, workdir='runs/paper', seeds=(0,), **changes):
  config = config_file.get_config(variant)
  config.update_from_flattened_dict(changes)
  return distinct(members(tables.build(config), config, str(workdir), seeds))


def parsed(words):
  """The config and the workdir that the command line gives."""
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file('config', flag_values=values)
  workdir = flags.DEFINE_string('workdir', None, '', flag_values=values)
  argv = command_line.normalise(['afw-jax', *words])
  before, sys.argv = sys.argv, argv  # where ml_collections looks for overridden keys
  try:
    values(argv)
  finally:
    sys.argv = before
  return config.value, workdir.value


@pytest.mark.parametrize('variant', ['table6,figure4', 'table5,phantom', 'table6,figure4,phantom'])
def test_a_command_line_gives_the_config_of_its_run(variant):
  for run in runs(variant, seeds=(3,), **{'paper.pretrained.transunet': '/x/a b.npz'} if 'table5' in variant else {}):
    config, workdir = parsed(arguments(run))
    assert flat(config) == flat(run.config) and workdir == run.folder
  assert "'/x/a b.npz'" not in shown_command(run) and 'python -m afw_jax.main --config=' in shown_command(run)


@pytest.mark.parametrize('variant', ['all,losses', pytest.param('all,losses,phantom', marks=SLOW)])
def test_every_run_can_be_trained_as_far_as_can_be_told_without_data(variant):
  """Each network once, and each loss with its options once."""
  more = {'paper.best': 'square,ce_dice_sum,anchored'}
  kinds = {(run.data, run.config.model.name): run for run in runs(variant, **more)}
  for run in kinds.values():
    check_config(run.config)
  options = {str(dict(run.config.loss[run.config.loss.name])): run.config.loss for run in runs(variant, **more)}
  assert len(options) == 3 + 17  # those of the other losses, and ce_afw or ce_dice with options
  for loss in options.values():
    chosen = {key: value for key, value in loss[loss.name].items() if key != 'rare'}
    losses.make_loss(loss.name, **chosen)


def test_a_key_that_is_not_there_or_of_another_type():
  config = config_file.get_config('table1')
  for changes in ({'loss.ce_afw.gama': 1.0}, {'loss.none.gamma': 1.0}, {'train.epochs': 'many'}):
    with pytest.raises(InputError, match=rf'synapse\.{next(iter(changes))}'):
      make_run(config, 'w', 'synapse', changes, 0, '')


def test_a_folder_with_another_run_is_refused(tmp_path):
  (run, *_) = runs('table1', tmp_path)
  (tmp_path / run.name / 'checkpoints' / 'last' / '5').mkdir(parents=True)
  written = json.loads(run.config.to_json_best_effort())
  path = tmp_path / run.name / 'config.json'
  path.write_text(json.dumps(written))
  check_folder(run)
  path.write_text(json.dumps(written | {'eval': written['eval'] | {'convention': 'monai'}}))
  check_folder(run)  # scored in another way: the same training
  path.write_text(json.dumps(written | {'seed': 7}))
  with pytest.raises(InputError, match='seed was 7, is 0'):
    check_folder(run)
