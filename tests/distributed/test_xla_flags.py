"""XLA flags are set where they help, and nowhere else; each case in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from afw_jax.distributed import xla_flags
from afw_jax.errors import InputError

ROOT = Path(__file__).parents[2]
ASK = """
import os
from afw_jax.distributed import xla_flags
got = xla_flags.set_cpu_flags()
print(got, os.environ.get('XLA_FLAGS'), sep='|')
"""
FLAG = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'


def ask(before='', after='', **environment):
  clean = {key: value for key, value in os.environ.items() if key not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  run = subprocess.run(
    [sys.executable, '-c', f'import sys\n{before}\n{ASK}\n{after}'],
    cwd=ROOT,
    env=clean | environment,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  return run.stdout.splitlines()[0].split('|')


def pretend(call):
  return f'import importlib.metadata as m\nreal = m.version\n{call}'


CPU_ONLY = pretend(
  'm.entry_points = lambda **k: []\nm.version = lambda p: {"jaxlib": "0.10.2"}[p] if p == "jaxlib" else real("no-such")'
)


@pytest.mark.parametrize('release', xla_flags.KNOWN_JAXLIB)
def test_set_on_a_cpu_with_a_known_jaxlib(release):
  known = CPU_ONLY.replace('0.10.2', release)
  assert ask(known) == [FLAG, FLAG]
  assert ask(known, JAX_PLATFORMS='cpu') == [FLAG, FLAG]


OTHER_VERSION = 'm.version = lambda p: {} if p == "jaxlib" else real("no-such")'


@pytest.mark.parametrize(
  'before, environment',
  [
    pytest.param('import jax', {}, id='jax imported'),
    pytest.param('', {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}, id='user flags'),
    pytest.param('', {'JAX_PLATFORMS': 'cuda'}, id='gpu'),
    pytest.param('', {'JAX_PLATFORMS': 'cuda,cpu'}, id='gpu then cpu'),
    pytest.param(OTHER_VERSION.format('"99.0"'), {}, id='other jaxlib'),
    pytest.param(OTHER_VERSION.format('"0.10.20"'), {}, id='similar jaxlib'),
    pytest.param(OTHER_VERSION.format('real("no-such")'), {}, id='no jaxlib'),
    pytest.param('m.entry_points = lambda **k: ["xla_cuda12"]', {}, id='cuda plugin'),
    pytest.param('m.version = lambda p: "0.10.2" if p == "jaxlib" else "0.1"', {}, id='libtpu'),
  ],
)
def test_left_alone_where_it_might_do_harm(before, environment):
  assert ask(f'{CPU_ONLY}\n{before}', **environment) == ['None', environment.get('XLA_FLAGS', 'None')]


GPU = '--xla_gpu_deterministic_ops=true --xla_gpu_enable_triton_gemm=false'
WITH_GPU = CPU_ONLY.replace('lambda **k: []', 'lambda **k: ["xla_cuda12"]')
ASK_GPU = ASK.replace('set_cpu_flags', 'set_deterministic')


def test_a_gpu_repeats_itself_on_request(monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], 'ASK', ASK_GPU)
  assert ask(CPU_ONLY) == ['None', 'None']  # no GPU: nothing to do
  assert ask(WITH_GPU) == [GPU, GPU]
  assert ask(WITH_GPU, XLA_FLAGS='--xla_dump_to=x') == [GPU, f'--xla_dump_to=x {GPU}']
  assert ask(WITH_GPU, XLA_FLAGS=GPU) == ['None', GPU]
  first, second = GPU.split()
  for own, added in (
    ('--xla_gpu_enable_triton_gemm=true', first),
    ('--xla_gpu_deterministic_ops', second),
    ('--xla_gpu_deterministic_ops=1', second),
    ('--xla_gpu_exclude_nondeterministic_ops=true', second),
    ('--xla_gpu_deterministic_ops_of_another_name', GPU),
  ):
    assert ask(WITH_GPU, XLA_FLAGS=own) == [added, f'{own} {added}']
  refused = '--xla_gpu_deterministic_ops=false'
  assert ask(WITH_GPU, XLA_FLAGS=refused) == ['None', refused]
  unknown = WITH_GPU.replace('0.10.2', '99.0')
  with pytest.raises(AssertionError, match=f"InputError.*jaxlib 99.0 .*set XLA_FLAGS='{GPU}' yourself"):
    ask(unknown)
  assert ask(unknown, XLA_FLAGS=GPU) == ['None', GPU]
  # set after jax is imported, it is still read, and this jaxlib accepts it
  ask(f'import jax\n{WITH_GPU}', 'm.entry_points = lambda **k: []\nassert float(jax.numpy.ones(3).sum()) == 3')


def test_this_jaxlib_accepts_what_is_set_and_nothing_imports_jax():
  ask('', 'assert "jax" not in sys.modules\nimport jax; assert float(jax.numpy.ones(3).sum()) == 3')


@pytest.mark.parametrize('count', ['0', '', 'two', '1.5', '-2'])
def test_a_number_of_devices_that_jax_cannot_use_is_refused(count, run_main):
  with pytest.raises(InputError, match='^JAX_NUM_CPU_DEVICES: .* is not a number of devices'):
    xla_flags.check_device_count({'JAX_NUM_CPU_DEVICES': count})
  if count in ('0', ''):
    done = run_main('--help', JAX_NUM_CPU_DEVICES=count, check=2)
    assert done.stderr.startswith('\nerror: JAX_NUM_CPU_DEVICES: ') and 'Traceback' not in done.stderr


def test_numbers_of_devices_that_jax_can_use():
  for environ in ({}, {'JAX_NUM_CPU_DEVICES': '1'}, {'JAX_NUM_CPU_DEVICES': '8'}, {'JAX_NUM_CPU_DEVICES': '-1'}):
    xla_flags.check_device_count(environ)
