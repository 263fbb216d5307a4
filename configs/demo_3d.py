"""The synthetic abdomens of the config `demo` as volumes: a 3D network, trained in minutes on a CPU.

python -m afw_jax.data.phantom --output runs/demo-data
afw-jax --config=demo_3d --workdir=runs/demo-3d
"""

from afw_jax.config import default_config


def get_config():
  """A small UNETR on 16 whole phantoms, one per step: many small steps learn more in the same time."""
  config = default_config()
  config.data.dataset = 'folder'
  config.data.root = 'runs/demo-data'
  config.data.size = (32, 48, 64)  # 224 x 269 x 358 mm around the middle
  config.data.spacing_mm = (7.0, 5.6, 5.6)
  config.data.fit = 'crop_pad'
  config.data.interpolation = 'linear'
  config.data.window = '-150,350'
  config.model.name = 'unetr'
  config.model.size = 'testing'
  config.model.unetr.feature_size = 8
  config.augment.name = 'volume'
  config.augment.volume.mirror_axes = ()  # the organs of a mirrored abdomen change sides
  config.augment.volume.max_angle_deg = (10.0, 5.0, 5.0)
  config.augment.volume.scale = (0.9, 1.1)
  config.augment.volume.voxel_aspect = config.data.spacing_mm
  config.optimizer.learning_rate = 0.3  # at 0.02 no organ is found in this time
  config.optimizer.clip_norm = 2.0
  config.train.batch_size = 1
  config.train.epochs = 40
  config.train.validate_every_epochs = 10
  config.train.checkpoint_every_steps = 200
  config.eval.batch_size = 1
  return config
