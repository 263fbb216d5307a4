"""Synapse (BTCV), eight organs, the paper's Table 1.

    afw-jax --config=synapse --config.data.root=data/synapse --workdir=runs/synapse

The paper reports DSC 79.47 %, HD 28.41 mm for UNet with CE + AFW-Dice, 77.46 % and 33.31 mm for CE + Dice
(--config.loss.name=ce_dice). Data: 30 cases of syn3193805; 18 train, 12 test as TransUNet. Raw NIfTI (img/, label/) or
TransUNet's train_npz/ and test_vol_h5/ are both read.
"""

from afw_jax.config import default_config


def get_config():
  """The paper's recipe, which is the default config."""
  config = default_config()
  config.data.dataset = 'synapse'
  config.data.root = 'data/synapse'
  return config
