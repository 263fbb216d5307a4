"""The CPUs and the memory of this process under cgroup limits, on made-up /proc and /sys/fs/cgroup trees."""

import os

import pytest

from afw_jax.data import resources
from afw_jax.data.formats import geometry
from afw_jax.data.preparation import worker_pool
from afw_jax.errors import InputError

GIB = 2**30
PHYSICAL = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


@pytest.fixture(autouse=True)
def sixty_four_cpus(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)


def tree(root, groups, files, available=None):
  """Folders as /proc and /sys/fs/cgroup have them: the lines of /proc/self/cgroup, and limit files by relative path."""
  (root / 'proc' / 'self').mkdir(parents=True)
  (root / 'proc' / 'self' / 'cgroup').write_text('\n'.join(groups) + '\n', encoding='utf-8')
  if available is not None:
    text = f'MemTotal: 99999999999 kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n'
    (root / 'proc' / 'meminfo').write_text(text, encoding='utf-8')
  (root / 'cgroup').mkdir()
  for name, text in files.items():
    path = root / 'cgroup' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text}\n', encoding='utf-8')
  return {'proc': root / 'proc', 'cgroup': root / 'cgroup'}


V1 = ('4:memory:/docker/abc', '3:cpu,cpuacct:/docker/abc', '2:cpuset:/docker/abc', '0::/')


@pytest.mark.parametrize(
  'groups, files, cpus, gib',
  [
    (['0::/'], {}, 64, None),
    (['0::/'], {'memory.max': 'max', 'cpu.max': 'max 100000'}, 64, None),
    (['0::/'], {'memory.max': GIB, 'cpu.max': '200000 100000'}, 2, 1),
    (['0::/job/step'], {'job/step/memory.max': 3 * GIB, 'job/step/cpu.max': '150000 100000'}, 2, 3),
    # the limit is that of a group above, as SLURM and Kubernetes set it
    (['0::/a/b/c'], {'a/memory.max': GIB, 'a/b/c/memory.max': 2 * GIB, 'a/b/cpu.max': '50000 100000'}, 1, 1),
    # a container sees its own group as the root, and /proc names the path on the host
    (['0::/docker/0123'], {'memory.max': GIB, 'cpu.max': '300000 100000'}, 3, 1),
    (['0::/../../outside'], {'memory.max': GIB}, 64, 1),
    (['0::/a:b'], {'a:b/memory.max': GIB}, 64, 1),
    (['0::/mine'], {'other/memory.max': GIB, 'other/cpu.max': '100000 100000'}, 64, None),
    (
      V1,
      {
        'memory/docker/abc/memory.limit_in_bytes': 2 * GIB,
        'memory/memory.limit_in_bytes': 9223372036854771712,
        'cpu,cpuacct/docker/abc/cpu.cfs_quota_us': 400000,
        'cpu,cpuacct/docker/abc/cpu.cfs_period_us': 100000,
      },
      4,
      2,
    ),
    (
      V1,
      {
        'memory/memory.limit_in_bytes': GIB,
        'cpu/cpu.cfs_quota_us': -1,
        'cpu/cpu.cfs_period_us': 100000,
        'cpuset/docker/abc/cpu.cfs_quota_us': 1,
      },
      64,
      1,
    ),
    (V1, {'cpu/docker/cpu.cfs_quota_us': 250000, 'cpu/docker/cpu.cfs_period_us': 100000}, 3, None),
    (V1, {'cpu/docker/cpu.cfs_quota_us': 250000}, 64, None),
    (V1, {'unified/memory.max': GIB}, 64, 1),
    (['0::/'], {'memory.max': 'nonsense', 'cpu.max': ''}, 64, None),
  ],
)
def test_limits_of_cgroups(tmp_path, groups, files, cpus, gib):
  where = tree(tmp_path, groups, files)
  assert resources.cpu_count(**where) == cpus
  assert resources.memory_limit(**where) == (PHYSICAL if gib is None else min(gib * GIB, PHYSICAL))


def test_affinity_and_a_system_without_cgroups(tmp_path, monkeypatch):
  nowhere = {'proc': tmp_path / 'proc', 'cgroup': tmp_path / 'cgroup'}
  assert resources.cpu_count(**nowhere) == 64 and resources.memory_limit(**nowhere) == PHYSICAL
  assert resources.free_memory(**nowhere) == PHYSICAL
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {5}, raising=False)
  assert resources.cpu_count(**tree(tmp_path, ['0::/'], {'cpu.max': '800000 100000'})) == 1
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert resources.cpu_count(**nowhere) == os.cpu_count()


@pytest.mark.parametrize('available, limit, free', [(10**6, GIB, 10**6 // 1024 * 1024), (GIB, 10**6, 10**6)])
def test_free_memory_is_what_the_system_has_within_the_limit(tmp_path, available, limit, free):
  where = tree(tmp_path, ['0::/'], {'memory.max': limit}, available)
  assert resources.free_memory(**where) == free


def test_the_check_before_reading_and_the_number_of_workers_keep_the_limits(tmp_path, monkeypatch):
  where = tree(tmp_path, ['0::/a'], {'a/memory.max': GIB, 'a/cpu.max': '300000 100000'}, 64 * GIB)
  monkeypatch.setattr(resources.cpu_count, '__kwdefaults__', where)
  monkeypatch.setattr(resources.memory_limit, '__kwdefaults__', where)
  monkeypatch.setattr(resources.free_memory, '__kwdefaults__', where)
  geometry.check_memory('scan.nii', GIB)
  with pytest.raises(InputError, match='1.0 GiB are free'):
    geometry.check_memory('scan.nii', GIB + 1)
  assert worker_pool.default_workers() == 1  # one worker takes up to 2 GiB
  (where['cgroup'] / 'a' / 'memory.max').write_text(str(100 * GIB), encoding='utf-8')
  monkeypatch.setattr(os, 'sysconf', lambda name: {'SC_PAGE_SIZE': 4096, 'SC_PHYS_PAGES': 25 * GIB // 1024}[name])
  assert worker_pool.default_workers() == 3
