"""The allocator of the C library, told to keep freed memory for the next training step."""

import ctypes
import os
import platform
from collections.abc import Mapping

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # of glibc's malloc.h


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
  """Makes glibc's malloc keep what is freed, instead of giving it back to the system and asking for it again.

  Call it at the start of a program whose arrays are on a CPU: threads that have begun keep their own memory. XLA
  allocates the temporary memory of a program, often more than a GiB, at each call and frees it after it; glibc takes
  and returns blocks of this size by `mmap`, and the system then clears and maps them page by page. On two cores, with
  the default, this took a sixth of UNet's training step and a fifth of the time of its predictions; on more it was not
  measured. In return the process holds its largest use of memory to its end.

  Args:
    environ: environment variables; where they have settings of malloc, or another allocator, nothing is changed.

  Returns:
    Whether it was changed: not where the environment has settings, nor on systems without glibc.
  """
  said = any(key.startswith('MALLOC_') or key == 'LD_PRELOAD' for key in environ)
  if said or 'glibc.malloc' in environ.get('GLIBC_TUNABLES', '') or platform.libc_ver()[0] != 'glibc':
    return False
  mallopt = ctypes.CDLL(None).mallopt
  # One arena, so that one thread's memory serves the others; it grows as the heap, without mmap, and is never trimmed.
  return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])
