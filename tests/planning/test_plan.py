"""A training step compiled for devices that are not there: what it holds, what it sends, and where it fits."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys

import jax
import pytest

from afw_jax.distributed import sharding
from afw_jax.errors import InputError
from afw_jax.planning import accelerators, collectives, plan
from configs import synapse

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


def small(**changes):
  """Synapse's config with a UNet that is quick to compile."""
  config = synapse.get_config()
  config.data.size = (32, 32)
  config.model.unet.features = (4, 6, 8, 10, 12)
  config.train.batch_size = 4
  config.update_from_flattened_dict(changes)
  return config


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


def test_traffic_of_loops_within_loops_and_of_programs_of_accelerators():
  hlo = '\n'.join(
    [
      'HloModule jit_f, is_scheduled=true',
      '',
      '%add (a: f32[], b: f32[]) -> f32[] {',
      '  ROOT %s = f32[] add(f32[] %a, f32[] %b)',
      '}',
      '',
      '%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {',
      '  %r = f32[8]{0:T(128)S(1)} all-reduce(f32[8]{0} %g), replica_groups={{0,1}}, to_apply=%add',
      '}',
      '',
      '%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {',
      '  %w = (s32[], f32[8]{0}) while((s32[], f32[8]{0}) %t), condition=%c, body=%inner, '
      'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}',
      '}',
      '',
      '%never (p: f32[8]) -> f32[8] {',
      '  %r9 = f32[8]{0} all-reduce(f32[8]{0} %p), to_apply=%add',
      '}',
      '',
      'ENTRY %main.1_spmd (x: f32[4,8]) -> f32[8] {',
      '  %w2 = (s32[], f32[8]{0}) while((s32[], f32[8]{0}) %t), condition=%c, body=%outer, '
      'backend_config={"known_trip_count":{"n":"2"}}',
      '  %ag = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(bf16[4,8]{1,0} %x), dimensions={0}',
      '  %agd = bf16[16,8]{1,0} all-gather-done((bf16[4,8]{1,0}, bf16[16,8]{1,0}) %ag)',
      '  %cp = (f32[1,8]{1,0}, f32[1,8]{1,0}, u32[], u32[]) collective-permute-start(f32[1,8]{1,0} %y), source_target_pairs={{0,1}}',
      '  %cpd = f32[1,8]{1,0} collective-permute-done((f32[1,8]{1,0}, f32[1,8]{1,0}, u32[], u32[]) %cp)',
      '  %rs = ((f32[8]{0}, f32[4]{0}), (f32[2]{0}, f32[1]{0})) reduce-scatter-start(f32[8]{0} %u, f32[4]{0} %v), to_apply=%add',
      '  %rsd = (f32[2]{0}, f32[1]{0}) reduce-scatter-done(((f32[8]{0}, f32[4]{0}), (f32[2]{0}, f32[1]{0})) %rs)',
      '  ROOT %ar = (f32[8]{0}, /*index=1*/f32[2]{0}) all-reduce(f32[8]{0} %a, f32[2]{0} %b), to_apply=%add',
      '}',
    ]
  )
  assert sorted(collectives.traffic(hlo)) == [
    ('all-gather', 256, 1),
    ('all-reduce', 32, 6),
    ('all-reduce', 40, 1),
    ('collective-permute', 32, 1),
    ('reduce-scatter', 12, 1),
  ]


@pytest.fixture(scope='module')
def one():
  """The small training step on one device."""
  return plan.measure({'config': small(), 'target': 'cpu', 'memory_gib': None, 'mesh': (1, 1), 'flops': None})


def test_what_one_device_holds_is_the_state_and_the_batch(one):
  _, (state, batch, key) = plan.program(
    small(), sharding.make_mesh(1, 1, jax.devices()[:1]), micro_batches=1, unroll=True
  )
  size = lambda tree: sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))
  assert batch['image'].shape == (4, 32, 32, 1) and batch['image'].dtype == 'int16'
  assert one['memory']['arguments'] == size(state) + size(batch) + 8  # a key is two words
  assert one['memory']['aliased'] == size(state)  # donated: it is not held twice
  assert one['traffic'] == []
  forward = sum(2 * 4 * math.prod(k.shape) * (32 >> level) ** 2 for level, k in _convolutions(state.params['net']))
  assert 2.5 * forward < one['flops'] < 4 * forward


def _convolutions(net):
  """(level, kernel) of the 3 x 3 convolutions of a UNet: level l works on sides of 1 / 2^l."""
  widths = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(net):
    if leaf.ndim == 4 and leaf.shape[:2] == (3, 3):
      widths.setdefault(leaf.shape[-1], []).append((path, leaf))
  for level, width in enumerate(sorted(widths)):
    for _, leaf in widths[width]:
      yield level, leaf


def test_plan_finds_the_smallest_mesh_that_fits(one, monkeypatch):
  compiled = plan._elsewhere
  monkeypatch.setattr(plan, '_elsewhere', lambda job, *rest: one if job['mesh'] == (1, 1) else compiled(job, *rest))
  written = []
  rows = plan.plan(
    small(), 'cpu', '1,1x2,3', one['memory']['total'] * 0.85 / 0.9 / accelerators.GIB, write=written.append
  )
  assert [(row['mesh'], row['fits']) for row in rows] == [((1, 1), False), ((1, 2), True), (None, False)]
  assert rows[1]['memory']['total'] < 0.8 * rows[0]['memory']['total']
  assert rows[0]['traffic'] == [] and {'all-reduce', 'collective-permute'} <= {
    kind for kind, _, _ in rows[1]['traffic']
  }
  assert rows[0]['flops'] == rows[1]['flops'] == one['flops']
  gathered = sorted(size for kind, size, _ in rows[1]['traffic'] if kind == 'all-gather')
  assert gathered == [4 * 32 * 32, 2 * 4 * 32 * 32]  # label and image for the rotation, as they are stored
  assert [line.split()[:6] for line in written[2:4]] == [
    [
      str(n),
      '1',
      'x',
      str(n),
      f'{row["memory"]["total"] / accelerators.GIB:.3g}',
      f'{row["memory"]["temporary"] / accelerators.GIB:.3g}',
    ]
    for n, row in zip((1, 2), rows)
  ]
  assert '3  no such mesh' in written[4]
  assert 'smallest of these that fits: 2 devices, --config.mesh.data=1 --config.mesh.spatial=2' in written[5]


def test_plan_says_what_may_help_where_nothing_fits(one, monkeypatch):
  refused = {'flops': 4e12, 'exhausted': 20.55, 'seconds': 1.0}
  monkeypatch.setattr(plan, '_elsewhere', lambda job, *_: one if job['mesh'] == (1, 1) else refused)
  written = []
  rows = plan.plan(small(), 'cpu', '1,2x1', 1e-6, write=written.append)
  assert [row['fits'] for row in rows] == [False, False]
  assert written[3].split() == ['2', '2', 'x', '1', '20.6', 'no', '2']
  assert 'None of these fits' in written[-1] and 'remat' in written[-1]


@pytest.mark.parametrize(
  'choice, fixed, mesh',
  [
    ('8', {}, (2, 4)),
    ('1', {}, (1, 1)),
    ('6', {}, (6, 1)),
    ('3x2', {}, (3, 2)),
    ('16', {}, (2, 8)),
    ('5', {}, None),
    ('4x4', {}, None),
    ('1x16', {}, None),
    ('32', {}, None),
    ('8', {'spatial': 8}, (1, 8)),
    ('8', {'data': 1}, (1, 8)),
    ('8', {'data': 8}, None),
  ],
)
def test_meshes_divide_batch_and_volume(choice, fixed, mesh):
  assert plan.mesh_of(choice, batch_size=6, side=128, rows=8, **fixed) == mesh


@pytest.mark.parametrize('choice', ['', '0', 'all', '2x2x2', '-1', '4x'])
def test_what_is_no_mesh_is_refused(choice):
  with pytest.raises(InputError, match=r'--devices: .* is no number of devices and no mesh'):
    plan.plan(small(), 'cpu', f'1,{choice}')


@pytest.mark.parametrize(
  'target, words',
  [
    (
      'h100',
      f'pip install --no-deps --target=compilers jax-cuda12-pjrt=={jax.__version__} jax-cuda12-plugin=={jax.__version__} ',
    ),
    ('v5e', 'pip install --no-deps --target=compilers libtpu=='),
  ],
)
def test_a_missing_compiler_is_named_with_the_command(monkeypatch, target, words):
  monkeypatch.setattr(importlib.metadata, 'distributions', lambda **_: iter(()))
  with pytest.raises(InputError, match=rf'--target={target}: its compiler is not installed') as raised:
    plan.plan(small(), target, '1')
  assert words in str(raised.value) and 'PYTHONPATH=compilers' in str(raised.value)


def test_unknown_targets_and_impossible_memory_are_refused():
  with pytest.raises(InputError, match="'b52' is unknown. Use one of cpu, a100_40, a100, h100, h200, v5e"):
    plan.plan(small(), 'b52', '1')
  with pytest.raises(InputError, match='--memory_gib: is 0'):
    plan.plan(small(), 'cpu', '1', 0.0)
  with pytest.raises(InputError, match='there is no slice of 3 chips'):
    accelerators.check('v5e', accelerators.get('v5e'), 3)


def test_a_mistake_in_the_config_comes_back_from_the_other_process():
  with pytest.raises(InputError, match='loss.rare'):
    plan.plan(small(**{'loss.ce_afw.rare': ('tail',)}), 'cpu', '1')


def test_a_compiler_that_runs_out_of_memory_says_how_much():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.55G of 15.75G hbm. Exceeded hbm capacity by 4.80G.'
  assert accelerators.exhausted(message) == 20.55
  early = 'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (46.09G) exceeds available HBM (15.75G).'
  assert accelerators.exhausted(early) == 46.09
  assert accelerators.exhausted('INTERNAL: something else. Used 1G of 2G') is None
  assert accelerators.exhausted('RESOURCE_EXHAUSTED: no figures of HBM') == float('inf')
  assert (
    accelerators.exhausted('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.20T of 15.75G hbm.')
    == 1.2 * 1024
  )
  assert (
    accelerators.exhausted('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.50M of 16.00M vmem.')
    is None
  )


def test_environment_keeps_the_flags_of_the_user():
  cpu, h100 = accelerators.get('cpu'), accelerators.get('h100')
  base = {
    'XLA_FLAGS': '--xla_dump_to=here --xla_force_host_platform_device_count=2',
    'HOME': '/root',
    'JAX_COMPILATION_CACHE_DIR': 'x',
    'JAX_NUM_CPU_DEVICES': '2',
  }
  made = accelerators.environment(cpu, 8, base)
  assert made['XLA_FLAGS'].split() == ['--xla_dump_to=here', '--xla_force_host_platform_device_count=8']
  assert made['HOME'] == '/root' and not {'JAX_COMPILATION_CACHE_DIR', 'JAX_NUM_CPU_DEVICES'} & set(made)
  assert '--xla_gpu_autotune_level=0' in accelerators.environment(h100, 8, base)['XLA_FLAGS']


@pytest.mark.parametrize('target, devices', [('h100', '2x2'), ('v5e', '2x2')])
def test_compilers_of_accelerators(target, devices):
  try:
    accelerators.check(target, accelerators.get(target), 4)
  except InputError as error:
    pytest.skip(str(error))
  (row,) = plan.plan(small(), target, devices)
  assert row['fits'] and {'all-reduce', 'collective-permute'} <= {kind for kind, _, _ in row['traffic']}


def test_the_door_opens_to_plan(run_main):
  done = run_main(
    '--mode=plan',
    '--config=configs/synapse.py',
    '--config.data.size=(32, 32)',
    '--config.model.unet.features=(4, 6, 8, 10, 12)',
    '--config.train.batch_size=4',
    '--devices=4',
  )
  assert '4 x 1' in done.stdout and 'smallest of these that fits: 4 devices' in done.stdout
  assert '--config: is not given' in run_main('--mode=plan', check=2).stderr
