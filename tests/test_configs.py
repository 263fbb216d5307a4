"""Every config that is shipped, and each of its variants, can be trained as far as can be told without data."""

import importlib
import pathlib

import pytest

from afw_jax.config.check import check_config
from afw_jax.errors import InputError
from configs import abdomenct1k_3d

NAMES = sorted(path.stem for path in pathlib.Path(__file__).parent.parent.glob('configs/*.py'))
VARIANTS = [(name,) for name in NAMES] + [
  ('abdomenct1k_3d', kind + more) for kind in abdomenct1k_3d.PATCHES for more in ('', '_patch')
]


@pytest.mark.parametrize('name', VARIANTS, ids=':'.join)
def test_a_shipped_config_can_be_trained(name):
  module, *variant = name
  check_config(importlib.import_module(f'configs.{module}').get_config(*variant))


def test_a_variant_that_is_not_there():
  with pytest.raises(InputError, match='unet3d_patch'):
    abdomenct1k_3d.get_config('unett')
