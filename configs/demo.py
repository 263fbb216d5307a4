"""A synthetic abdomen, trained in minutes on a CPU.

    python -m afw_jax.data.phantom --output runs/demo-data
    afw-jax --config=demo

In a clone `bash launch/demo.sh` does both, and predicts a new scan.
"""

from afw_jax.config import default_config


def get_config():
  """A narrow UNet on the slices of 16 phantoms."""
  config = default_config()
  config.data.dataset = 'folder'
  config.data.root = 'runs/demo-data'
  config.data.size = (80, 112)  # 224 x 314 mm around the middle: the body without the air beside it
  config.data.spacing_mm = (2.8, 2.8)
  config.data.fit = 'crop_pad'
  config.data.interpolation = 'linear'
  config.data.window = '-150,350'
  config.model.unet.features = (16, 32, 64, 128, 256)
  config.augment.paper.mirror_axes = ()  # the organs of a mirrored abdomen change sides
  config.augment.paper.max_angle_deg = 15.0
  # Not the paper's learned weights: what was best on real scans (docs/the-loss.md, "On real scans").
  config.loss.ce_afw.weights, config.loss.ce_afw.gamma = 'entropic', 1.0
  config.optimizer.learning_rate = 0.02
  config.train.batch_size = 8
  config.train.epochs = 16
  config.train.validate_every_epochs = 4
  config.train.checkpoint_every_steps = 100
  return config
