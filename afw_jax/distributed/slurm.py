"""Parses lists in SLURM's environment variables: host names ('rack[1-2]n[03-04],a7') and tasks per node ('2(x3),1')."""

import re

from afw_jax.errors import InputError

_CURE = 'Give --coordinator=HOST:PORT --num_processes=N --process_id=I instead.'
# A host or a pattern of hosts: names and bracketed ranges of numbers, in any order and number.
_RANGE = r'\d+(?:-\d+)?'
_BRACKET = rf'\[{_RANGE}(?:,{_RANGE})*\]'
_HOST = rf'(?:[\w.-]|{_BRACKET})+'
_HOST_LIST = re.compile(rf'{_HOST}(?:,{_HOST})*', re.ASCII)
_TASKS = re.compile(r'(\d+)(?:\(x(\d+)\))?')


def first_host(hosts: str) -> str:
  """The first host of a SLURM host list, as `scontrol show hostnames` prints it.

  The list is expanded from left to right, so the first host has the first number of each bracket, as it is written:
  zeros in front of a number belong to the name.

  Args:
    hosts: a list as in SLURM_STEP_NODELIST, e.g. 'node7', 'a1,b2', 'node[07-09,12]', 'rack[1-2]n[03-04].cluster'.

  Returns:
    The name of one host, e.g. 'rack1n03.cluster'.

  Raises:
    InputError: the list does not have this form, or a range runs backwards.
  """
  if not _HOST_LIST.fullmatch(hosts):
    raise InputError('SLURM_STEP_NODELIST', f'{hosts!r} is not a list of host names that can be read here', _CURE)
  for low, high in re.findall(r'(\d+)-(\d+)', ''.join(re.findall(_BRACKET, hosts))):
    if int(low) > int(high):
      raise InputError('SLURM_STEP_NODELIST', f'{hosts!r} holds the range {low}-{high}, which runs backwards', _CURE)
  first = re.match(_HOST, hosts, re.ASCII)[0]
  return re.sub(_BRACKET, lambda bracket: re.search(r'\d+', bracket[0])[0], first)


def tasks_per_node(counts: str) -> list[int]:
  """The number of tasks on each node of a step.

  Args:
    counts: a list as in SLURM_STEP_TASKS_PER_NODE, e.g. '2(x3),1'.

  Returns:
    One number per node, e.g. [2, 2, 2, 1].

  Raises:
    InputError: the list does not have this form.
  """
  parts = [_TASKS.fullmatch(part) for part in counts.split(',')]
  if not all(parts):
    raise InputError('SLURM_STEP_TASKS_PER_NODE', f'{counts!r} is not a list of numbers of tasks', _CURE)
  return [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]
