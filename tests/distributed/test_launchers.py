"""Rank and coordinator come from flags or from the launcher's variables; without them a process runs alone."""

import pytest
from process_runs import JOB, STEP

from afw_jax.distributed import launchers
from afw_jax.errors import InputError

JAX = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2'}


@pytest.mark.parametrize(
  'environ',
  [
    {},
    JOB,
    {**JOB, 'SLURM_NTASKS': '1'},
    {**STEP, 'SLURM_STEP_NUM_TASKS': '1'},  # a step of one task: salloc's own shell, sbatch's script
    {'JOB_COMPLETION_INDEX': '1'},
    {'KUBERNETES_SERVICE_HOST': '10.0.0.1'},
    {**JAX, 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'},
    {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'},
    {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '0', 'JAX_PLATFORMS': 'cpu'},
  ],
)
def test_a_single_process(environ):
  assert launchers.resolve_process(environ=environ) is None


@pytest.mark.parametrize(
  'environ, expected',
  [
    (STEP, launchers.Process('node07:' + str(61440 + 5000 % 4096), 4, 3, (1,))),
    ({**STEP, 'CUDA_VISIBLE_DEVICES': '0,1'}, launchers.Process('node07:62344', 4, 3, (1,))),
    ({**STEP, 'CUDA_VISIBLE_DEVICES': '1'}, launchers.Process('node07:62344', 4, 3)),  # SLURM has chosen for it
    (
      {
        **STEP,
        'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
        'SLURM_LOCALID': '0',
        'SLURM_STEP_NODELIST': 'gpu[3,5-6].cluster,b',
      },
      launchers.Process('gpu3.cluster:62344', 4, 3),
    ),
    (
      {**STEP, 'SLURM_STEP_NODELIST': 'alpha-1,beta', 'JAX_COORDINATOR_PORT': '99'},
      launchers.Process('alpha-1:99', 4, 3, (1,)),
    ),
    # Nodes of a step may have different numbers of tasks: node 0 has two, node 1 has one, which takes all GPUs.
    (
      {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '2,1', 'SLURM_NODEID': '0', 'SLURM_LOCALID': '0'},
      launchers.Process('node07:62344', 4, 3, (0,)),
    ),
    (
      {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '1,2', 'SLURM_NODEID': '1', 'SLURM_LOCALID': '0'},
      launchers.Process('node07:62344', 4, 3, (0,)),
    ),
    (
      {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '2,1', 'SLURM_NODEID': '1', 'SLURM_LOCALID': '0'},
      launchers.Process('node07:62344', 4, 3),
    ),
    (
      {**STEP, 'SLURM_STEP_NODELIST': 'rack[1-2]n[03-04].cluster'},
      launchers.Process('rack1n03.cluster:62344', 4, 3, (1,)),
    ),
    ({**JAX, 'JOB_COMPLETION_INDEX': '1'}, launchers.Process('a:1', 2, 1)),
    ({**JAX, 'JAX_PROCESS_ID': '0'}, launchers.Process('a:1', 2, 0)),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}, launchers.Process('auto')),
  ],
)
def test_launchers(environ, expected):
  assert launchers.resolve_process(environ=environ) == expected


@pytest.mark.parametrize(
  'environ, named',
  [
    (JAX, 'JAX_PROCESS_ID'),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}, 'JAX_COORDINATOR_ADDRESS'),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1', 'JOB_COMPLETION_INDEX': '1'}, 'JAX_NUM_PROCESSES'),
    ({**JAX, 'JAX_NUM_PROCESSES': 'two', 'JAX_PROCESS_ID': '0'}, "JAX_NUM_PROCESSES: 'two' is not a whole number"),
    ({**JAX, 'JAX_PROCESS_ID': '-1'}, "JAX_PROCESS_ID: '-1' is not a whole number"),
    ({**JAX, 'JAX_PROCESS_ID': '2'}, '0 to 1'),
    ({**STEP, 'SLURM_STEP_NUM_TASKS': 'many'}, "SLURM_STEP_NUM_TASKS: 'many' is not a whole number"),
    ({**STEP, 'SLURM_PROCID': '4'}, 'SLURM_PROCID: 4 is not the rank of one of 4 processes'),
  ],
)
def test_incomplete_or_invalid_variables_are_refused(environ, named):
  """Taken for a single process, each would train the whole run in the same workdir."""
  with pytest.raises(InputError, match=named):
    launchers.resolve_process(environ=environ)
  assert launchers.resolve_process(None, 1, environ=environ) is None


def test_flags_come_first_and_are_given_together():
  assert launchers.resolve_process('a:1', 2, 1, environ=STEP) == launchers.Process('a:1', 2, 1)
  assert launchers.resolve_process('auto', environ={}) == launchers.Process('auto')
  assert launchers.resolve_process(None, 1, None, environ=STEP) is None
  for given, named in (
    ((None, 2, 1), '--coordinator'),
    (('a:1', 2, None), '--process_id'),
    (('a:1', 2, 2), '0 to 1'),
    (('a', 2, 1), 'HOST:PORT'),
    (('a:1', 0, 0), '1 or more'),
  ):
    with pytest.raises(InputError, match=named):
      launchers.resolve_process(*given, environ={})
