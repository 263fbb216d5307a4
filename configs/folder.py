"""Your own scans: images/ and labels/ with a dataset.json (nnU-Net v2's dialect).

    afw-jax --config=folder --config.data.root=PATH --workdir=runs/NAME

For MR add --config.data.window=percentile.
"""

from afw_jax.config import default_config


def get_config():
  """The paper's network and loss; the window of TransUNet, wider than the paper's, suits most CT."""
  config = default_config()
  config.data.dataset = 'folder'
  config.data.root = 'data/mine'
  config.data.window = 'transunet'
  config.data.fractions = (8, 2, 0)
  return config
