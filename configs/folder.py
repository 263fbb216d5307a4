"""Your own scans: images/ and labels/ with a dataset.json (nnU-Net v2's dialect).

afw-jax --config=folder --config.data.root=PATH --workdir=runs/NAME
"""

from afw_jax.config import default_config


def get_config():
  """The paper's network and training, with class weights that favour what is found worst."""
  config = default_config()
  config.data.dataset = 'folder'
  config.data.root = 'data/mine'
  config.data.fractions = (8, 2, 0)
  # Not the paper's learned weights: what was best on real scans (docs/the-loss.md, "On real scans").
  config.loss.ce_afw.weights, config.loss.ce_afw.gamma = 'entropic', 1.0
  return config
