"""Your own scans: images/ and labels/ with a dataset.json (nnU-Net v2's dialect).

python -m afw_jax.main --config=configs/folder.py --config.data.root=PATH --workdir=runs/NAME
"""

from afw_jax.config import default_config


def get_config():
  """The paper's network and loss; TransUNet's wider window suits most CT. For MR: --config.data.window=percentile."""
  config = default_config()
  config.data.dataset = 'folder'
  config.data.root = 'data/mine'
  config.data.window = 'transunet'
  config.data.fractions = (8, 2, 0)
  return config
