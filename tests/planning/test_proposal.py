"""The proposal: nnU-Net's spacing by hand, sizes that the networks take, and a batch that fits a memory."""

import math

import pytest
from measured_cases import case
from small_config import small

from afw_jax import models
from afw_jax.config import build, default_config
from afw_jax.errors import InputError
from afw_jax.planning import accelerators, isolated, proposal


def of(shape, spacing_mm, n=1):
  return [{'shape': list(shape), 'spacing_mm': list(spacing_mm)}] * n


def test_the_spacing_is_the_median_and_of_a_coarse_axis_the_tenth_percentile():
  fine, coarse = of((100, 512, 512), (2.0, 0.8, 0.8), 2), of((40, 512, 512), (5.0, 0.8, 0.8), 9)
  assert proposal.target_spacing([*fine, *coarse], volumes=False) == (5.0, 0.8, 0.8)
  # the tenth percentile of 2, 2, 5 x 9 is at rank 1 of 0 to 10
  assert proposal.target_spacing([*fine, *coarse], volumes=True) == pytest.approx((2.0, 0.8, 0.8))
  # no finer than the others
  finest = of((800, 512, 512), (0.5, 0.8, 0.8), 2)
  assert proposal.target_spacing([*finest, *coarse], volumes=True) == pytest.approx((0.8, 0.8, 0.8))
  # coarse, but with as many voxels as the others; or not three times as coarse
  assert proposal.target_spacing([*of((180, 512, 512), (5.0, 0.8, 0.8), 9), *fine], volumes=True)[0] == 5.0
  assert proposal.target_spacing([*fine, *of((90, 512, 512), (2.4, 0.8, 0.8), 9)], volumes=True)[0] == 2.4


def test_the_size_of_the_median_scan():
  cases = [
    *of((50, 400, 400), (2.0, 0.75, 0.75)),
    *of((60, 512, 500), (2.0, 1.0, 1.0)),
    *of((70, 600, 600), (2.0, 1.0, 1.0)),
  ]
  assert proposal.median_size(cases, (2.0, 1.0, 1.0)) == (60, 512, 500)
  assert proposal.median_size(cases, (4.0, 2.0, 2.0)) == (30, 256, 250)
  assert proposal.rounded_up((30, 257, 250), (16, 16, 16)) == (32, 272, 256)
  assert proposal.rounded((36, 5, 50), (32, 32, 32)) == (32, 32, 64)


def test_a_patch_shrinks_where_it_covers_most_of_the_scan():
  assert proposal.shrunk((64, 512, 512), (64, 128, 128), (32, 32, 32), 32 * 128 * 128) == (32, 128, 128)
  assert proposal.shrunk((32, 32, 32), (32, 32, 32), (32, 32, 32), 1) == (32, 32, 32)
  assert proposal.first_patch((512, 512, 512), (1, 1, 1), (16, 16, 16), 128**3) == (128, 128, 128)
  # of equal length in mm: 2 mm along z, so half as many voxels
  depth, height, width = proposal.first_patch((512, 512, 512), (2, 1, 1), (1, 1, 1), 128**3)
  assert height == width == 161 and depth == 81
  assert proposal.first_patch((32, 512, 512), (2, 1, 1), (1, 1, 1), 128**3)[0] == 32


@pytest.mark.parametrize('name', models.MODELS)
def test_every_network_takes_what_is_proposed_to_it(name):
  config = default_config()
  config.model.name, config.model.size = name, 'testing'
  cases = of((100, 510, 500), (2.5, 0.75, 0.75), 3)
  found = proposal.propose(config, cases, 'cpu')
  for key, value in found['options'].items():
    section, option = key.split('.')
    config[section][option] = tuple(value) if isinstance(value, list) else value
  size = build.input_size(config)
  assert len(config.data.spacing_mm) == len(size) == models.module_of(name).SPATIAL_DIMS
  models.abstract_variables(build.network(config, 4)[0], (1, *size, 1))
  build.store_options(config.data)
  if len(size) == 2:
    assert all(0 <= n - median < 32 for n, median in zip(size, (510, 500))) and config.train.batch_size == 24
  else:
    assert math.prod(size) <= proposal.PATCH_VOXELS and config.train.batch_size == 2
  assert found['needs_gib'] is None and any('--memory_gib=16' in remark for remark in found['remarks'])


def test_options_are_typed_as_the_command_line_takes_them():
  assert proposal.command_options({'data.size': [], 'data.spacing_mm': [0.7812, 1.0], 'train.batch_size': 3}) == [
    '--config.data.size="()"',
    '--config.data.spacing_mm="(0.7812, 1)"',
    '--config.train.batch_size=3',
  ]


def pretend(monkeypatch, gib):
  """Compiles nothing: a step takes `gib(config)`, of which 1 GiB is the state. Returns the configs that were asked."""
  asked = []

  def measured(job, target, on_wait):
    asked.append(job['config'].copy_and_resolve_references())
    total = gib(job['config']) * accelerators.GIB
    return {'memory': {'total': int(total), 'aliased': accelerators.GIB}}

  monkeypatch.setattr(isolated, 'measure_in_subprocess', measured)
  return asked


def test_a_batch_that_fits_the_memory(monkeypatch):
  asked = pretend(monkeypatch, lambda config: 1 + 0.5 * config.train.batch_size)
  found = proposal.propose(default_config(), [case()], 'cpu', 8 / 0.9)
  # 24 samples need 13 of 8 GiB; (8 - 1) / (13 - 1) of them, with a margin of 5 %, are 13
  assert [config.train.batch_size for config in asked] == [24, 13]
  assert found['options']['train.batch_size'] == 13 and found['needs_gib'] == pytest.approx(7.5)
  assert asked[0].data.size == (512, 512)


def test_a_patch_that_fits_the_memory_after_the_batch(monkeypatch):
  per_voxel = 10 / 128**3
  asked = pretend(
    monkeypatch, lambda config: 1 + per_voxel * math.prod(config.train.patch_size) * config.train.batch_size
  )
  config = default_config()
  config.model.name = 'unet3d'
  found = proposal.propose(config, [case()], 'cpu', 16 / 0.9)
  assert 1 < len(asked) <= 3 and found['options']['train.batch_size'] == 2
  assert 1 < found['needs_gib'] <= 16
  assert math.prod(found['options']['train.patch_size']) > 0.5 * 128**3 * 15 / 20
  assert found['options']['train.patch_size'] == list(asked[-1].train.patch_size)


def test_gradient_accumulation_keeps_whole_parts(monkeypatch):
  pretend(monkeypatch, lambda config: 1 + 0.5 * config.train.batch_size)
  config = default_config()
  config.train.micro_batches = 4
  assert proposal.propose(config, [case()], 'cpu', 8 / 0.9)['options']['train.batch_size'] == 12


def test_what_cannot_be_fitted_is_said(monkeypatch):
  asked = pretend(monkeypatch, lambda config: 50 + config.train.batch_size)  # shrinks, but not enough
  config = default_config()
  config.train.batch_size = 1000
  found = proposal.propose(config, [case()], 'cpu', 60)
  assert found['needs_gib'] is None and len(asked) == 3 and 'No size was found that fits' in found['remarks'][-1]
  monkeypatch.setattr(isolated, 'measure_in_subprocess', lambda *_: {'refused': 'why'})
  assert 'why' in proposal.propose(default_config(), [case()], 'cpu', 8)['remarks'][-1]

  def fails(*_):
    raise InputError('x', 'is wrong', 'Mend it')

  monkeypatch.setattr(isolated, 'measure_in_subprocess', fails)
  assert 'x: is wrong. Mend it' in proposal.propose(default_config(), [case()], 'cpu', 8)['remarks'][-1]
  with pytest.raises(InputError, match='h10.*not a known device.*h100'):
    proposal.propose(default_config(), [case()], 'h10')


def test_the_memory_of_a_target_need_not_be_given(monkeypatch):
  asked = pretend(monkeypatch, lambda config: 70.0)
  assert 'not installed' in proposal.propose(default_config(), [case()], 'h100')['remarks'][-1] or asked
  monkeypatch.setattr(accelerators, 'check', lambda *_: None)
  found = proposal.propose(default_config(), [case()], 'h100')
  assert found['needs_gib'] == 70 and found['memory_gib'] == accelerators.TARGETS['h100'].memory_gib


def test_files_without_mm_keep_their_spacing():
  found = proposal.propose(default_config(), [case() | {'spacing_mm': None}], 'cpu')
  assert 'data.spacing_mm' not in found['options'] and found['options']['data.size'] == [512, 512]


def test_a_real_program_is_compiled():
  config = small()
  found = proposal.propose(config, [{'shape': [8, 30, 30], 'spacing_mm': [5.0, 2.0, 2.0]}], 'cpu', 1.0)
  assert found['options']['data.size'] == [32, 32] and found['options']['train.batch_size'] == config.train.batch_size
  assert 0 < found['needs_gib'] < 0.9
