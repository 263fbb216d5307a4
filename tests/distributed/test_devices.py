"""The devices of a run: what is said of them, and what is refused; with a plugin whose GPU is not there."""

import logging
import re
import types

import jax
import pytest
from conftest import ROOT

from afw_jax.distributed import devices
from afw_jax.errors import InputError


@pytest.fixture(scope='module')
def plugin(tmp_path_factory):
  """A folder for PYTHONPATH with an installed plugin of JAX that fails as that of CUDA does without a driver."""
  folder = tmp_path_factory.mktemp('plugin')
  for path, text in (
    (
      'jax_plugins/xla_fake/__init__.py',
      'def initialize():\n  raise RuntimeError("Unable to load CUDA. Is it there?")\n',
    ),
    ('fake-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n'),
    ('fake-1.0.dist-info/entry_points.txt', '[jax_plugins]\nxla_fake = jax_plugins.xla_fake\n'),
  ):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
  return folder


REASON = r'Unable to load CUDA\. Is it there\?'


@pytest.mark.parametrize(
  'platforms, option, said',
  [
    (
      '',
      '',
      f'the CPU is used, although there is .*the plugin xla_fake.* \\(JAX: {REASON}\\).*\nrunning on cpu: 1 x cpu, 1',
    ),
    ('cpu', '', r'\A\n?running on cpu: 1 x cpu, 1 process\n'),
    ('cuda', '', f'^\nerror: JAX_PLATFORMS=cuda: JAX cannot use such a device \\({REASON}\\)'),
    ('cuda,cpu', '', f'^\nerror: JAX_PLATFORMS=cuda,cpu: JAX finds the CPU only \\(JAX: {REASON}\\)'),
    (
      '',
      'gpu',
      f'^\nerror: runtime.platform=gpu: JAX finds other devices, cpu: 1 x cpu, 1 process \\(JAX: {REASON}\\)',
    ),
  ],
)
def test_a_plugin_without_its_device(run_main, demo, tmp_path, plugin, platforms, option, said):
  more = [f'--config.runtime.platform={option}'] if option else []
  # The run ends where it looks for its store.
  done = run_main(
    *demo,
    *more,
    '--mode=evaluate',
    f'--workdir={tmp_path}/run',
    check=2,
    JAX_PLATFORMS=platforms,
    PYTHONPATH=f'{ROOT}:{plugin}',
  )
  assert 'Traceback' not in done.stderr
  assert re.search(said, done.stderr), done.stderr


@pytest.fixture
def find(monkeypatch):
  """Makes JAX find other devices, on a machine with an NVIDIA GPU."""

  def find(platform, *kinds, asked='', processes=1, gib=None):
    stats = lambda: gib and {'bytes_limit': gib * 2**30}
    found = [types.SimpleNamespace(platform=platform, device_kind=kind, memory_stats=stats) for kind in kinds]
    monkeypatch.setattr(jax, 'devices', lambda: found)
    monkeypatch.setattr(jax, 'local_devices', lambda: found)
    monkeypatch.setattr(jax, 'default_backend', lambda: platform)
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    monkeypatch.setattr(devices, '_accelerators', lambda: ['/dev/nvidia0'])
    monkeypatch.setenv('JAX_PLATFORMS', asked)

  return find


def test_the_devices_in_one_line(find, monkeypatch):
  find('cpu', 'cpu')
  assert devices.describe() == 'cpu: 1 x cpu, 1 process'
  find('gpu', *['NVIDIA H200'] * 8, processes=2, gib=105)
  assert devices.describe() == 'gpu: 8 x NVIDIA H200 with 105.0 GiB for JAX each, 2 processes'
  find('tpu', 'TPU v5 lite', 'TPU v5 lite', 'TPU v6')

  def unknown():
    raise jax.errors.JaxRuntimeError('UNIMPLEMENTED: memory_stats')

  monkeypatch.setattr(jax.devices()[0], 'memory_stats', unknown)
  assert devices.describe() == 'tpu: 2 x TPU v5 lite and 1 x TPU v6, 1 process'


@pytest.mark.parametrize(
  'platform, found, asked, said, outcome',
  [
    ('', 'gpu', '', [], None),
    ('gpu', 'gpu', 'cuda,cpu', [], None),
    ('cpu', 'cpu', 'cpu', ['x'], None),
    ('', 'cpu', 'cpu,cuda', ['x'], None),
    ('tpu', 'tpu', '', [], None),
    ('', 'gpu', '', ['no TPU'], r'JAX says: no TPU'),
    ('', 'cpu', '', [], r'the CPU is used, although there is /dev/nvidia0\. JAX_PLATFORMS=cpu says'),
    (
      'cpu',
      'gpu',
      '',
      [],
      InputError('runtime.platform=cpu', 'JAX finds other devices, gpu: ', 'Set JAX_PLATFORMS=cpu'),
    ),
    ('tpu', 'gpu', '', [], InputError('runtime.platform=tpu', 'JAX finds other devices, gpu: ', '')),
    ('', 'cpu', 'tpu,cpu', [], InputError('JAX_PLATFORMS=tpu,cpu', 'JAX finds the CPU only', '')),
    ('gup', 'gpu', '', [], InputError('runtime.platform', "'gup' is unknown", "Did you mean 'gpu'")),
  ],
)
def test_what_was_asked_for(find, platform, found, asked, said, outcome):
  find(found, 'kind', asked=asked)
  if isinstance(outcome, InputError):
    with pytest.raises(InputError) as raised:
      devices.check(platform, said)
    assert all(part in str(raised.value) for part in str(outcome).split(': ')), raised.value
  elif outcome is None:
    assert devices.check(platform, said) is None
  else:
    assert re.match(outcome, devices.check(platform, said) or '')


def test_devices_that_fail_to_start_are_one_line(monkeypatch):
  def fail():
    logging.getLogger('jax._src.xla_bridge').warning('the driver\nis old')
    raise RuntimeError("Unable to initialize backend 'cuda': INTERNAL:\nno device (you may need to uninstall it)")

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  with pytest.raises(InputError) as raised:
    devices.start()
  reason = "Unable to initialize backend 'cuda': INTERNAL: no device; the driver is old"
  assert str(raised.value).startswith(f'devices: JAX cannot use those of this machine ({reason}). ')
