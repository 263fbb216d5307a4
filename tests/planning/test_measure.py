"""Memory and communication that are read off compiled programs, compared with what can be counted by hand."""

import json
import os
import subprocess
import sys

import jax
import pytest
from small_config import small

from afw_jax.planning import accelerators, measure

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


class Step:
  """In place of a jitted step: fails where it is lowered or compiled."""

  def __init__(self, lower=None, compile=None):
    self.errors = {'lower': lower, 'compile': compile}

  def lower(self, *_):
    return self._fail('lower')

  def compile(self):
    return self._fail('compile')

  def _fail(self, when):
    if self.errors[when]:
      raise self.errors[when]
    return self


INTERNAL = jax.errors.JaxRuntimeError('INTERNAL: no tile sizes for %dot.1 = dot(), metadata={op}\n\tSymbolic tile')


@pytest.mark.parametrize(
  'step, wanted',
  [
    (Step(compile=INTERNAL), {'refused': 'INTERNAL: no tile sizes for %dot.1 = dot()'}),
    (Step(lower=NotImplementedError('no rule for tpu')), {'refused': 'no rule for tpu'}),
    (Step(compile=jax.errors.JaxRuntimeError('x' * 1000)), {'refused': 'x' * 300 + ' ...'}),
    (Step(compile=jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Used 2G of hbm')), {'exhausted': 2.0}),
  ],
)
def test_a_program_that_does_not_compile_is_a_result(monkeypatch, step, wanted):
  monkeypatch.setattr(measure, 'program', lambda *_, **__: (step, ()))
  result = measure.measure(small(), 'cpu', (1, 1), flops=7.0)
  assert result.pop('seconds') >= 0
  assert result == {'flops': 7.0, 'fused_attention': False, **wanted}


def test_a_mistake_of_the_program_is_no_result(monkeypatch):
  monkeypatch.setattr(measure, 'program', lambda *_, **__: (Step(lower=TypeError('shapes')), ()))
  with pytest.raises(TypeError, match='shapes'):
    measure.measure(small(), 'cpu', (1, 1), flops=7.0)


@pytest.mark.parametrize(
  'target, flags, fused',
  [
    ('h100', '', True),
    ('h100', '--xla_gpu_deterministic_ops=true', False),
    ('v5e', '', False),
  ],
)
def test_the_kernel_of_attention_is_that_of_the_target(monkeypatch, target, flags, fused):
  monkeypatch.setattr(accelerators, 'devices', lambda *_: jax.devices()[:1])
  monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda *_: (_ for _ in ()).throw(INTERNAL))
  monkeypatch.setenv('XLA_FLAGS', flags)
  changes = {'model.name': 'unetr', 'data.size': (16, 16, 16), 'model.dtype': 'bfloat16', 'augment.name': 'none'}
  result = measure.measure(small(**changes), target, (1, 1), flops=7.0)
  assert result['fused_attention'] == fused and 'no tile sizes' in result['refused']
