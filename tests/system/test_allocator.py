"""Freed memory stays with the process, for all its threads, and the user's own settings stay as they are."""

import os
import platform
import subprocess
import sys

import pytest

from afw_jax.distributed import xla_flags
from afw_jax.model_file import run
from afw_jax.system import allocator

# As XLA does it: another thread than the main one allocates, uses and frees a large block again and again.
USE = """
import ctypes, resource, sys, threading
sys.path.insert(0, sys.argv[1])
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages in this process, so that pages can be counted
if sys.argv[2:]:
  import afw_jax.main
else:
  from afw_jax.system import allocator
  print(allocator.keep_freed_memory())
def use():
  for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(100_000_000)[::4096]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=use)
thread.start()
thread.join()
"""


def use(*arguments, **environment):
  """What the call returned, if any, and the number of pages that the system had to map at each of four uses."""
  clean = {k: v for k, v in os.environ.items() if k not in ('LD_PRELOAD', 'GLIBC_TUNABLES') and 'MALLOC' not in k}
  root = os.path.dirname(os.path.dirname(os.path.dirname(allocator.__file__)))
  done = subprocess.run(
    [sys.executable, '-c', USE, root, *arguments], env=clean | environment, capture_output=True, text=True, check=True
  )
  return [word == 'True' if word.isalpha() else int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the settings are of glibc')
def test_memory_is_mapped_once():
  kept, *pages = use()
  assert kept and pages[0] > 1000 and max(pages[1:]) < 100
  kept, *pages = use(MALLOC_ARENA_MAX='8')  # the user's own settings: as the C library has it
  assert not kept and min(pages) > 1000


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the settings are of glibc')
def test_the_programs_call_it(monkeypatch, tmp_path):
  first, *pages = use('main', JAX_PLATFORMS='cpu')
  assert first > 1000 and (max(pages) < 100 or not xla_flags.is_for_cpu())
  called = []
  monkeypatch.setattr(allocator, 'keep_freed_memory', lambda: called.append(True))
  monkeypatch.setattr(xla_flags, 'is_for_cpu', lambda: True)
  assert run.main(str(tmp_path / 'none.zip'), '--check') == 2 and called


@pytest.mark.parametrize(
  'environ',
  [{'MALLOC_TRIM_THRESHOLD_': '0'}, {'LD_PRELOAD': 'libjemalloc.so'}, {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}],
)
def test_own_settings_stay(environ):
  assert not allocator.keep_freed_memory(environ)


def test_other_systems_have_no_such_settings(monkeypatch):
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  assert not allocator.keep_freed_memory({})
