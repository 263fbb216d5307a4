"""CHAOS MR (T2-SPIR), four organs, at a size that two CPU cores train in about 20 minutes.

    afw-jax --config=chaos --config.data.root=data/chaos --workdir=runs/chaos_afw
    afw-jax --config=chaos --config.data.root=data/chaos --workdir=runs/chaos_dice --config.loss.name=ce_dice

data.root is the challenge's Train_Sets (MR/<id>/T2SPIR/...) or a folder with images/ and labels/ as NIfTI. CHAOS has no
public test labels: three quarters train, one quarter (seeded) validates, and the report says so. The paper's own CHAOS
set (CT, with a pancreas) does not exist officially; its search of gamma cannot be repeated on official data.
"""

from afw_jax.config import default_config


def get_config():
  """A narrow UNet at 128 x 128. The brightness of MR scans varies, hence the extended augmentation."""
  config = default_config()
  config.data.dataset = 'chaos_mr_t2'
  config.data.root = 'data/chaos'
  config.data.size = (128, 128)
  config.data.spacing_mm = ()
  config.model.unet.features = (16, 32, 64, 128, 256)
  config.optimizer.learning_rate = 0.02
  config.augment.name = 'extended'
  config.train.batch_size = 12
  config.train.epochs = 70
  config.train.validate_every_epochs = 10
  return config
