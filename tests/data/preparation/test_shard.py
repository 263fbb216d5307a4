"""Which shard of the cases a process prepares: from the option, or from the SLURM array job."""

import pytest
from many_cases import ARRAY_TASK

from afw_jax.data.preparation.shard import parse_shard
from afw_jax.errors import InputError


@pytest.mark.parametrize(
  'text, environment, shard',
  [
    ('', {}, None),
    ('2/8', {}, (2, 8)),
    ('0/1', ARRAY_TASK, (0, 1)),
    ('', ARRAY_TASK, (1, 3)),
    ('', ARRAY_TASK | {'SLURM_ARRAY_TASK_ID': '9'}, (2, 3)),
    ('', {'SLURM_ARRAY_TASK_ID': '4'}, (0, 1)),
  ],
)
def test_which_shard(text, environment, shard):
  assert parse_shard(text, environment) == shard


@pytest.mark.parametrize(
  'text, environment',
  [('8/8', {}), ('1', {}), ('-1/2', {}), ('a/b', {}), ('0/0', {}), ('', ARRAY_TASK | {'SLURM_ARRAY_TASK_STEP': '1'})],
)
def test_invalid_shards(text, environment):
  with pytest.raises(InputError, match='i/n'):
    parse_shard(text, environment)
