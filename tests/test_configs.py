"""Every config that is shipped, and each of its variants, can be trained as far as can be told without data."""

import importlib
import json
import pathlib

import pytest

from afw_jax.config import build
from afw_jax.config.check import check_config
from afw_jax.data.preparation.listing import make_listing
from afw_jax.data.selection import choose
from afw_jax.data.sets.case_files import CaseFiles
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputError
from configs import abdomenct1k_3d, demo, folder

FILES = pathlib.Path(__file__).parent.parent.glob('configs/*.py')
NAMES = sorted(path.stem for path in FILES if path.stem != 'paper')  # which is many: tests/paper/test_paper_runs.py
VARIANTS = [(name,) for name in NAMES] + [
  ('abdomenct1k_3d', kind + more) for kind in abdomenct1k_3d.PATCHES for more in ('', '_patch')
]


@pytest.mark.parametrize('name', VARIANTS, ids=':'.join)
def test_a_shipped_config_can_be_trained(name):
  module, *variant = name
  check_config(importlib.import_module(f'configs.{module}').get_config(*variant))


@pytest.mark.parametrize('channel, window', [('CTA', (-125, 275)), ('T2', 'percentile'), ('mri', 'percentile')])
def test_the_window_of_ones_own_scans_follows_their_modality(tmp_path, channel, window):
  (tmp_path / 'dataset.json').write_text(json.dumps({'channel_names': {'0': channel}, 'labels': {'liver': 1}}))
  data = folder.get_config().data
  listing = make_listing(get_spec(data.dataset, str(tmp_path)), [CaseFiles('a', 'a.nii', 'b.nii')])
  assert choose(listing, build.selection_options(data)).window == window


def test_a_variant_that_is_not_there():
  with pytest.raises(InputError, match='unet3d_patch'):
    abdomenct1k_3d.get_config('unett')


def test_a_fold_that_cannot_be_is_refused_before_any_work():
  config = demo.get_config()
  config.data.fold = '3/2'
  with pytest.raises(InputError, match=r"data.fold: '3/2' is not a fold"):
    check_config(config)
