"""Accelerators that are not installed: their names, compilers and environment, and errors of their compilers."""

import importlib.metadata

import jax
import pytest
from small_config import small

from afw_jax.distributed import xla_flags
from afw_jax.errors import InputError
from afw_jax.planning import accelerators, plan


@pytest.mark.parametrize(
  'target, words',
  [
    (
      'h100',
      'pip install --no-deps --target=compilers '
      f'jax-cuda12-pjrt=={jax.__version__} jax-cuda12-plugin=={jax.__version__} ',
    ),
    ('v5e', 'pip install --no-deps --target=compilers libtpu=='),
  ],
)
def test_a_missing_compiler_is_named_with_the_command(monkeypatch, target, words):
  monkeypatch.setattr(importlib.metadata, 'distributions', lambda **_: iter(()))
  with pytest.raises(InputError, match=rf'--target={target}: its compiler is not installed') as raised:
    plan.plan(small(), target, '1')
  assert words in str(raised.value) and 'PYTHONPATH=compilers' in str(raised.value)


def test_unknown_targets_and_impossible_memory_are_refused():
  with pytest.raises(InputError, match="'a10' is not a known device. Did you mean 'a100'. Use one of cpu, a100_40"):
    plan.plan(small(), 'a10', '1')
  with pytest.raises(InputError, match='--memory_gib: 0.0 is not positive'):
    plan.plan(small(), 'cpu', '1', 0.0)
  with pytest.raises(InputError, match='no slice of v5e has 3 chips'):
    accelerators.check('v5e', accelerators.get('v5e'), 3)


def test_a_compiler_that_runs_out_of_memory_says_how_much():
  message = (
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.55G of 15.75G hbm. '
    'Exceeded hbm capacity by 4.80G.'
  )
  assert accelerators.exhausted(message) == 20.55
  early = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (46.09G) '
    'exceeds available HBM (15.75G).'
  )
  assert accelerators.exhausted(early) == 46.09
  assert accelerators.exhausted('INTERNAL: something else. Used 1G of 2G') is None
  assert accelerators.exhausted('RESOURCE_EXHAUSTED: no figures of HBM') == float('inf')
  assert (
    accelerators.exhausted('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.20T of 15.75G hbm.')
    == 1.2 * 1024
  )
  assert (
    accelerators.exhausted('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.50M of 16.00M vmem.')
    is None
  )


def test_environment_keeps_the_flags_of_the_user():
  cpu, h100 = accelerators.get('cpu'), accelerators.get('h100')
  base = {
    'XLA_FLAGS': '--xla_dump_to=here --xla_force_host_platform_device_count=2',
    'HOME': '/root',
    'JAX_COMPILATION_CACHE_DIR': 'x',
    'JAX_NUM_CPU_DEVICES': '2',
  }
  made = accelerators.environment(cpu, 8, base)
  assert made['XLA_FLAGS'].split() == ['--xla_dump_to=here', '--xla_force_host_platform_device_count=8']
  assert made['HOME'] == '/root' and not {'JAX_COMPILATION_CACHE_DIR', 'JAX_NUM_CPU_DEVICES'} & set(made)
  untimed = ['--xla_gpu_autotune_level=0', '--xla_gpu_enable_triton_gemm=false']
  assert accelerators.environment(h100, 8, base)['XLA_FLAGS'].split()[-2:] == untimed
  own = '--xla_gpu_enable_triton_gemm=true'
  assert accelerators.environment(h100, 8, {'XLA_FLAGS': own})['XLA_FLAGS'].split() == [own, untimed[0]]


def test_a_tpu_is_compiled_for_without_the_search_for_speed_unless_the_user_asks_for_it():
  v5e, effort = accelerators.get('v5e'), 'JAX_EXEC_TIME_OPTIMIZATION_EFFORT'
  assert accelerators.environment(v5e, 1, {})[effort] == '-1.0'
  assert accelerators.environment(v5e, 1, {effort: '0.0'})[effort] == '0.0'
  assert effort not in accelerators.environment(accelerators.get('h100'), 1, {})


def test_a_release_that_may_not_know_a_flag_is_not_given_it(monkeypatch):
  monkeypatch.setattr(xla_flags, 'KNOWN_JAXLIB', ())
  made = accelerators.environment(accelerators.get('h100'), 8, {})
  assert made['XLA_FLAGS'] == '--xla_gpu_autotune_level=0'


@pytest.mark.parametrize('target, devices', [('h100', '2x2'), ('v5e', '2x2')])
def test_compilers_of_accelerators(target, devices):
  try:
    accelerators.check(target, accelerators.get(target), 4)
  except InputError as error:
    pytest.skip(str(error))
  (row,) = plan.plan(small(), target, devices)
  assert row['fits'] and {'all-reduce', 'collective-permute'} <= {kind for kind, _, _ in row['traffic']}
