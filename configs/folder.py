"""Your own scans: images/ and labels/ with a dataset.json (nnU-Net v2's dialect).

afw-jax --config=folder --config.data.root=PATH --workdir=runs/NAME
"""

from afw_jax.config import default_config


def get_config():
  """The paper's network and loss. For short trainings see docs/the-loss.md, 'What to use when'."""
  config = default_config()
  config.data.dataset = 'folder'
  config.data.root = 'data/mine'
  config.data.fractions = (8, 2, 0)
  return config
