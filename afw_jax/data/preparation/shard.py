"""Shards: the part of the work, cases or runs, that one task of an array job does."""

import logging
from collections.abc import Mapping

from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int] | None:
  """The shard that this process works on.

  Args:
    text: 'i/n', counted from 0; '': from the SLURM array job that this process is a task of, if it is one.
    environment: os.environ.

  Returns:
    (i, n), or None for everything.

  Raises:
    InputError: not a valid shard, or array tasks that are not evenly numbered.
  """
  if text:
    i, _, n = text.partition('/')
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
      raise InputError(
        f'--shard={text}', 'is not i/n with i below n', 'Count from 0: the second of eight shards is --shard=1/8'
      )
    return int(i), int(n)
  if 'SLURM_ARRAY_TASK_ID' not in environment:
    return None
  task = int(environment['SLURM_ARRAY_TASK_ID'])
  count, first, last, step = (
    int(environment.get(f'SLURM_ARRAY_TASK_{key}', default))
    for key, default in (('COUNT', 1), ('MIN', task), ('MAX', task), ('STEP', 1))
  )
  if count > 1 and first + (count - 1) * step != last:
    raise InputError(
      'SLURM_ARRAY_TASK_ID',
      f'the {count} tasks {first} to {last} are not evenly numbered',
      'Submit --array=0-N, or give the shard of this task: --shard=i/n',
    )
  shard = (task - first) // step, count
  _log.info('task %d of a SLURM array: shard %d/%d (--shard=0/1 does everything)', task, *shard)
  return shard
