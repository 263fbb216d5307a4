"""Memory and communication that are read off compiled programs, compared with what can be counted by hand."""

import json
import os
import subprocess
import sys

import pytest

from afw_jax.planning import accelerators

KNOWN = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from afw_jax.planning import accelerators, collectives
mesh = Mesh(np.array(jax.devices()), ('d',))
rows, whole = NamedSharding(mesh, P('d')), NamedSharding(mesh, P())

def gathered(x, w):  # (64, 32) over four devices, made whole
  return x * 2

def summed(x, w):  # a matmul whose contracted axis is divided, five times
  return jax.lax.scan(lambda c, _: (jnp.tanh(x.T @ (x @ c)), None), w, None, length=5)[0]

def shifted(x, w):
  return jnp.pad(x, ((1, 0), (0, 0)))[:-1]

answers = {}
for f, out in ((gathered, whole), (summed, whole), (shifted, rows)):
  lowered = jax.jit(f, in_shardings=(rows, whole), out_shardings=out).lower(jnp.zeros((64, 32)), jnp.zeros((32, 16)))
  compiled = lowered.compile()
  answers[f.__name__] = {'traffic': collectives.traffic(compiled.as_text()), 'memory': accelerators.memory(compiled)}
print(json.dumps(answers))
"""


@pytest.fixture(scope='module')
def known():
  """What is said of three programs on four devices whose traffic can be counted by hand."""
  target = accelerators.get('cpu')
  done = subprocess.run(
    [sys.executable, '-c', KNOWN],
    env=accelerators.environment(target, 4, {**os.environ, 'PYTHONPATH': os.getcwd()}),
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def test_traffic_of_known_programs(known):
  assert known['gathered']['traffic'] == [['all-gather', 64 * 32 * 4, 1]]
  assert known['summed']['traffic'] == [['all-reduce', 32 * 16 * 4, 5]]  # once per trip of the loop
  assert known['shifted']['traffic'] == [['collective-permute', 32 * 4, 1]]  # one row


def test_memory_is_of_one_device(known):
  quarter, whole = 64 * 32 * 4 // 4, 64 * 32 * 4
  w = 32 * 16 * 4
  assert known['shifted']['memory']['arguments'] - known['shifted']['memory']['outputs'] in (0, w)  # w is not used
  assert known['gathered']['memory']['outputs'] == whole
  assert known['summed']['memory']['arguments'] == quarter + w
  for program in known.values():
    m = program['memory']
    assert m['total'] == m['arguments'] + m['outputs'] - m['aliased'] + m['temporary']
