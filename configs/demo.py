"""A synthetic abdomen, trained in minutes on a CPU.

    bash launch/demo.sh
"""

from configs import common


def get_config():
  """A narrow UNet on 16 phantoms."""
  config = common.get_config()
  config.data.dataset = 'folder'
  config.data.root = 'runs/demo-data'
  config.data.size = (112, 112)
  config.data.spacing_mm = ()
  config.data.interpolation = 'linear'
  config.data.window = '-150,350'
  config.model.unet.features = (16, 32, 64, 128, 256)
  config.augment.paper.mirror_axes = ()  # the organs of a mirrored abdomen change sides
  config.augment.paper.max_angle_deg = 15.0
  config.train.batch_size = 8
  config.train.epochs = 12
  config.train.validate_every_epochs = 3
  config.train.checkpoint_every_steps = 100
  return config
