"""Values that are not finite: how training ends, and what is kept."""

import json
import math
import os
import time

import ml_collections
import pytest

from afw_jax import train
from afw_jax.inference import validation
from afw_jax.training import checkpoint, metric_writer


def test_a_score_and_a_step_that_are_not_finite(trained, tmp_path, monkeypatch):
  config = ml_collections.ConfigDict(json.loads((trained / 'config.json').read_text(encoding='utf-8')))
  config.train.steps_per_epoch = config.train.validate_every_epochs = config.train.checkpoint_every_steps = 1
  config.optimizer.learning_rate, config.model.unet.features = 1e30, (2, 4)
  store, rename = str(next((trained.parent / 'stores').iterdir())), os.rename
  last, best = tmp_path / 'checkpoints' / 'last', tmp_path / 'checkpoints' / 'best'
  with monkeypatch.context() as patched, pytest.raises(FloatingPointError, match='step 2'):
    patched.setattr(validation, 'validate', lambda *args, **kwargs: {'val/dsc': math.nan})
    patched.setattr(os, 'rename', lambda *args, **kwargs: (time.sleep(0.5), rename(*args, **kwargs))[1])  # a slow disk
    train.train(config, str(tmp_path), store)
  # The validation of step 1 is recorded and chooses no checkpoint.
  assert metric_writer.read_metrics(str(tmp_path))[-1] == {'step': 1, 'val/dsc': None}
  assert not os.listdir(best) and checkpoint.read_meta(str(last))['best_dsc'] is None
  # The save of step 1, which was under way, was finished before step 2 ended the run.
  assert os.listdir(last) == ['1'] and checkpoint.read_meta(str(last))['step'] == 1
