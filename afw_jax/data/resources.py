"""CPUs and memory that this process may use: affinity, physical memory, and the limits of its cgroups (v1 and v2).

A container or a batch job (Docker, Kubernetes, SLURM) is limited by the control group of the process or by any of the
groups above it; `os.cpu_count` and the physical memory do not reflect these limits.
"""

import contextlib
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUP = Path('/proc'), Path('/sys/fs/cgroup')
_UNLIMITED = 10240  # files; where no limit is set, macOS allows no more
_ENOUGH = 1 << 15  # files; Linux allows twice as many memory maps


def cpu_count(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
  """CPUs this process may keep busy: its affinity mask, and the CPU quotas of its cgroups rounded up; at least 1.

  Args:
    proc: the proc file system.
    cgroup: where the cgroup file systems are mounted.
  """
  affinity = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  limits = [affinity]
  for folder in _cgroup_folders('cpu', proc, cgroup):
    v2, *v1 = (_numbers(folder / name) for name in ('cpu.max', 'cpu.cfs_quota_us', 'cpu.cfs_period_us'))
    quota = v2 or v1[0] + v1[1]  # microseconds of CPU time, and the microseconds of the period that they are for
    if len(quota) == 2 and min(quota) > 0:
      limits.append(math.ceil(quota[0] / quota[1]))
  return max(1, min(limits))


def memory_limit(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
  """Bytes of memory this process may ever use: the physical memory, or the lowest limit of its cgroups.

  Args:
    proc: the proc file system.
    cgroup: where the cgroup file systems are mounted.
  """
  limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  for folder in _cgroup_folders('memory', proc, cgroup):
    limits += _numbers(folder / 'memory.max') or _numbers(folder / 'memory.limit_in_bytes')
  return min(limits)


def free_memory(*, proc: Path = PROC, cgroup: Path = CGROUP) -> int:
  """Bytes of memory this process can get now: what the system has available, within `memory_limit`."""
  available = [int(line.split()[1]) * 1024 for line in _lines(proc / 'meminfo') if line.startswith('MemAvailable:')]
  return min([memory_limit(proc=proc, cgroup=cgroup), *available])


def open_files() -> int:
  """Files that this process may have open at once."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _ENOUGH)


def raise_open_files() -> None:
  """Lets this process open more files, up to its hard limit; systems often start it with 1024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = _UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    with contextlib.suppress(OSError, ValueError):  # a system that refuses: fewer cases stay open
      resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _cgroup_folders(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
  """The folders of this process's group and of all groups above it, in the hierarchies that limit `controller`.

  In a container the own group is often mounted as the root, while /proc names its path on the host: of the folders on
  that path only those that exist count.
  """
  for line in _lines(proc / 'self' / 'cgroup'):  # 'hierarchy:controllers:path', v2 without controllers
    _, controllers, path = line.split(':', 2)
    if controllers and controller not in controllers.split(','):
      continue
    mounts = (cgroup / controllers, cgroup / controller) if controllers else (cgroup, cgroup / 'unified')
    group = Path(os.path.normpath(f'/{path}').lstrip('/'))
    for mount in mounts:
      for folder in (mount / group, *(mount / parent for parent in group.parents)):
        if folder.is_dir():
          yield folder


def _lines(path: Path) -> list[str]:
  """Lines of a text file; none where there is no such file."""
  try:
    return path.read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError:
    return []


def _numbers(path: Path) -> tuple[int, ...]:
  """The whole numbers on the first line of a file; none where one is 'max' (no limit) or the file is missing."""
  words = (_lines(path) or [''])[0].split()
  return tuple(map(int, words)) if words and all(w.removeprefix('-').isdecimal() for w in words) else ()
