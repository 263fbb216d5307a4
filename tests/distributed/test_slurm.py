"""SLURM's lists: the first host is what `scontrol show hostnames` prints first; what cannot be read is refused."""

import pytest
from process_runs import STEP

from afw_jax.distributed import launchers, slurm
from afw_jax.errors import InputError

FIRST = {
  'localhost': 'localhost',
  'node7': 'node7',
  'alpha-1,beta': 'alpha-1',
  'a.example.org,b': 'a.example.org',
  'gpu_node1': 'gpu_node1',
  'node[7]': 'node7',
  'node[7-9]': 'node7',
  'node[07-09]': 'node07',
  'node[007,012-015]': 'node007',
  'node[9,10-12]': 'node9',
  'node[8-12]': 'node8',
  'node[0-0]': 'node0',
  'node[1,3],other[5-6]': 'node1',
  'login,node[1,3-4]': 'login',
  'gpu[3,5-6].cluster,b': 'gpu3.cluster',
  'gpu[01-02]-ib': 'gpu01-ib',
  'rack[1-2]n[03-04]': 'rack1n03',
  'rack[1-2]n[03-04].cluster,login': 'rack1n03.cluster',
  'r[2,1]c[10-11]n[008-009]': 'r2c10n008',
  'a[1-2][05-06]': 'a105',
  'x1000c[0-1]s[0-7]b[0-1]n[0-1]': 'x1000c0s0b0n0',
  '[1-3]': '1',
}


@pytest.mark.parametrize('hosts', FIRST)
def test_first_host(hosts):
  assert slurm.first_host(hosts) == FIRST[hosts]


@pytest.mark.parametrize(
  'hosts',
  [
    '',
    ' ',
    ',a',
    'a,',
    'a,,b',
    'a b',
    'node[',
    'node]',
    'node[]',
    'node[1',
    'node1]',
    'node[1-]',
    'node[-2]',
    'node[1-2-3]',
    'node[1,]',
    'node[,1]',
    'node[1 ,2]',
    'node[a-b]',
    'node[0xA-0xF]',
    'node[[1-2]]',
    'node[1-[2-3]]',
    'node[2-1]',
    'rack[1-2]n[04-03]',
    'good[1-2],bad[3',
    'node{1-2}',
    'node(x2)',
    'node:1',
    'node[١-٢]',
    'bgq[0000x1233]',
  ],
)
def test_a_host_list_that_cannot_be_read_is_refused_with_the_flags_to_give_instead(hosts):
  with pytest.raises(InputError, match='SLURM_STEP_NODELIST: .*--coordinator=HOST:PORT') as error:
    slurm.first_host(hosts)
  assert repr(hosts) in str(error.value) or not hosts.strip()


def test_the_refusal_reaches_the_user_and_flags_avoid_it():
  step = {**STEP, 'SLURM_STEP_NODELIST': 'node[1-'}
  with pytest.raises(InputError, match='SLURM_STEP_NODELIST'):
    launchers.resolve_process(environ=step)
  assert launchers.resolve_process('a:1', 4, 3, environ=step) == launchers.Process('a:1', 4, 3)
  assert launchers.resolve_process(num_processes=1, environ=step) is None


@pytest.mark.parametrize(
  'counts, expected', [('4', [4]), ('2(x3)', [2, 2, 2]), ('2(x2),1', [2, 2, 1]), ('1,8(x2)', [1, 8, 8])]
)
def test_tasks_per_node(counts, expected):
  assert slurm.tasks_per_node(counts) == expected


@pytest.mark.parametrize('counts', ['', 'two', '2x3', '2(x)', '2(3)', '2,', '-1'])
def test_tasks_per_node_that_cannot_be_read_are_refused(counts):
  with pytest.raises(InputError, match='SLURM_STEP_TASKS_PER_NODE'):
    slurm.tasks_per_node(counts)
