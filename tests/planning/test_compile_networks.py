"""Every network's training and prediction step compiles for a GPU and a TPU, where their compilers are installed."""

import importlib.util
from pathlib import Path

import pytest
from marks import SLOW

from afw_jax import models
from afw_jax.errors import InputError
from afw_jax.planning import accelerators

PATH = Path(__file__).parents[2] / 'benchmarks' / 'compile.py'


@SLOW
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('target', ['h100', 'v5e'])
@pytest.mark.parametrize('network', models.MODELS)
@pytest.mark.parametrize('step', ['predict', 'train'])
def test_every_network_compiles(step, network, target, dtype):
  try:
    accelerators.check(target, accelerators.get(target), 1)
  except InputError as error:
    pytest.skip(str(error))
  spec = importlib.util.spec_from_file_location('compile_benchmark', PATH)
  compile_benchmark = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(compile_benchmark)
  result = compile_benchmark.run((network, step, dtype, target))
  if (network, step, target) == ('unet3d', 'train', 'v5e'):  # two crops of 128^3 need four of these chips
    assert result['refused'].startswith('needs ')
    return
  assert 'refused' not in result, result
  assert result['gib'] < accelerators.get(target).memory_gib
