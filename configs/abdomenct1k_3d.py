"""AbdomenCT-1K in 3D, four organs, the paper's Table 6: 200 cases, 150 train, 20 validation, 30 test.

    afw-jax --config=abdomenct1k_3d:unetrpp --config.data.root=data/abdomenct1k --workdir=runs/unetrpp
    afw-jax --config=abdomenct1k_3d:unetr_patch --config.data.root=data/abdomenct1k --workdir=runs/unetr_patch

After the colon: unetr (the default), unetrpp or unet3d (nnU-Net's, not in the paper), on whole volumes as the paper
trains them (1 mm, then 256 x 256 x 128 voxels, batch 6; they used one 80 GB GPU); or the same with _patch, on crops of
which at least a third contain an organ, as the authors of these networks do. The four rows of Table 6 are unetr and
unetrpp, each with the default loss (CE + AFW-Dice: DSC 78.30 and 88.01 %) and with --config.loss.name=ce_dice (76.41
and 87.70 %). Which cases the paper drew is not known; these are drawn with data.split_seed.
"""

from afw_jax.config import default_config
from afw_jax.errors import InputError

# (d, h, w) of the patches in the papers of the networks
PATCHES = {'unetr': (96, 96, 96), 'unetrpp': (64, 128, 128), 'unet3d': (128, 128, 128)}


def get_config(variant: str = 'unetr'):
  """A 3D network on whole volumes, or with '_patch' on crops."""
  name = variant.removesuffix('_patch')
  if name not in PATCHES:
    raise InputError(
      f'configs/abdomenct1k_3d.py:{variant}',
      'there is no such variant',
      f'Use {", ".join(f"{name}, {name}_patch" for name in PATCHES)}.',
    )
  config = default_config()
  config.data.dataset = 'abdomenct1k'
  config.data.root = 'data/abdomenct1k'
  config.data.num_cases = 200
  config.data.fractions = (0.75, 0.1, 0.15)
  config.data.size = (128, 256, 256)
  config.data.spacing_mm = (1.0, 1.0, 1.0)
  config.model.name = name
  config.augment.name = 'volume'
  config.augment.volume.voxel_aspect = (2.5, 1.6, 1.6)  # of a typical scan resized to this grid
  config.train.batch_size = 6
  config.train.epochs = 1500
  config.train.validate_every_epochs = 25
  config.eval.batch_size = 1
  if variant != name:
    config.data.size = ()
    config.data.spacing_mm = (2.0, 1.5, 1.5)
    config.data.fit = 'crop_pad'  # without a size nothing is cropped: the spacing gives the size
    config.augment.volume.voxel_aspect = config.data.spacing_mm
    config.train.patch_size = PATCHES[name]
    config.train.crops_per_case = 2
    config.train.batch_size = 2
    config.eval.batch_size = 2
  return config
