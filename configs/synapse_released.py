"""Synapse as the authors' released code trains it (TransUNet's recipe).

    afw-jax --config=synapse_released --config.data.root=data/synapse --workdir=runs/released

TransUNet's window and 512 -> 224 zoom without resampling to millimetres, three input channels, 0.5 CE + 0.5 AFW with
squared denominators, weight decay 1e-4 on everything, the learning rate lowered every step, TransUNet's metrics.
"""

from afw_jax.config import default_config


def get_config():
  """Every point where paper and released code differ, set to the released one."""
  config = default_config()
  config.data.dataset = 'synapse'
  config.data.root = 'data/synapse'
  config.data.window = 'transunet'
  config.data.spacing_mm = ()
  config.model.unet.recipe = 'released'
  config.loss.ce_afw.recipe = 'released'
  config.loss.ce_dice.recipe = 'released'
  config.optimizer.weight_decay = 1e-4
  config.optimizer.schedule_unit = 'step'
  config.augment.name = 'released'
  config.eval.convention = 'transunet'
  config.eval.checkpoint = 'last'
  return config
