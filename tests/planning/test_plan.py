"""--mode=plan: the table, the smallest mesh that fits, and choices of devices."""

import json
import math
from pathlib import Path

import jax
import pytest
from small_config import small

from afw_jax.distributed import sharding
from afw_jax.errors import InputError
from afw_jax.planning import accelerators, isolated, measure, plan


@pytest.fixture(scope='module')
def one():
  """The small training step on one device."""
  return measure.measure(small(), 'cpu', (1, 1))


def test_what_one_device_holds_is_the_state_and_the_batch(one):
  _, (state, batch, key) = measure.program(
    small(), sharding.make_mesh(1, 1, jax.devices()[:1]), micro_batches=1, unroll=True
  )
  size = lambda tree: sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))
  assert batch['image'].shape == (4, 32, 32, 1) and batch['image'].dtype == 'int16'
  assert one['memory']['arguments'] == size(state) + size(batch) + 8  # a key is two words
  assert one['memory']['aliased'] == size(state)  # donated: it is not held twice
  assert one['traffic'] == []
  forward = sum(2 * 4 * math.prod(k.shape) * (32 >> level) ** 2 for level, k in _convolutions(state.params['net']))
  assert 2.5 * forward < one['flops'] < 4 * forward


def test_a_program_for_scans_of_several_channels(tmp_path):
  described = {'channel_names': {'0': 'CT', '1': 'PET', '2': 'T1'}, 'labels': {'background': 0, 'liver': 1}}
  (tmp_path / 'dataset.json').write_text(json.dumps(described), encoding='utf-8')
  config = small(**{'data.dataset': 'folder', 'data.root': str(tmp_path)})
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  step, (state, batch, key) = measure.program(config, mesh, micro_batches=1, unroll=True)
  assert (batch['image'].shape, batch['image'].dtype) == ((4, 32, 32, 3), 'float32')
  assert batch['window'].shape == (4, 3, 2)
  jax.eval_shape(step, state, batch, key)  # the step takes them


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
  compiled = isolated.measure_in_subprocess
  known = lambda job, *rest: one if job['mesh_shape'] == (1, 1) else compiled(job, *rest)
  monkeypatch.setattr(isolated, 'measure_in_subprocess', known)
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
  known = lambda job, *_: one if job['mesh_shape'] == (1, 1) else refused
  monkeypatch.setattr(isolated, 'measure_in_subprocess', known)
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
def test_what_is_not_a_mesh_is_refused(choice):
  with pytest.raises(InputError, match=r'--devices: .* is neither a number of devices nor a mesh'):
    plan.plan(small(), 'cpu', f'1,{choice}')


def test_a_mistake_in_the_config_comes_back_from_the_other_process():
  with pytest.raises(InputError, match='loss.rare'):
    plan.plan(small(**{'loss.ce_afw.rare': ('tail',)}), 'cpu', '1')


def test_a_compiler_that_is_killed_or_fails_says_so(monkeypatch):
  def run(code):
    def write_log(command, environment, log_path, on_wait):
      Path(log_path).write_text('the last words', encoding='utf-8')
      return code

    monkeypatch.setattr(isolated, '_run', write_log)
    plan.plan(small(), 'cpu', '2x1')

  with pytest.raises(InputError, match='--devices: .* killed at the mesh 2x1, .* out of memory'):
    run(-9)
  with pytest.raises(RuntimeError, match='compiling for cpu, mesh 2x1, ended with exit code 1:\nthe last words'):
    run(1)


def test_what_does_not_compile_is_a_row_with_the_reason(one, monkeypatch):
  refused = {'flops': 4e12, 'refused': 'INTERNAL: no tile sizes', 'fused_attention': True, 'seconds': 1.0}
  ended = {'refused': 'the compiler ended by SIGABRT'}
  results = {(2, 1): refused, (1, 2): ended, (1, 1): one}
  monkeypatch.setattr(isolated, 'measure_in_subprocess', lambda job, *_: results[job['mesh_shape']])
  monkeypatch.setattr(accelerators, 'check', lambda *_: None)
  written = []
  rows = plan.plan(small(), 'h100', '2x1,1x2,1,3', write=written.append)
  assert [row['fits'] for row in rows] == [False, False, True, False]
  assert written[2].split(maxsplit=4) == ['2', '2', 'x', '1', 'does not compile: INTERNAL: no tile sizes']
  assert written[3].split(maxsplit=4) == ['2', '1', 'x', '2', 'does not compile: the compiler ended by SIGABRT']
  assert '4 TFLOP' in written[-1] and 'fused kernel of cuDNN' in written[-1]
  assert 'may compile on the GPU' in written[-1] and 'smallest of these that fits: 1 device,' in written[-1]
  plan.plan(small(), 'h100', '1x2,3', write=written.append)
  assert written[-1].endswith('None of these compiles.') and 'TFLOP' not in written[-1]
  monkeypatch.setattr(isolated, 'measure_in_subprocess', lambda *_: one)
  plan.plan(small(), 'h100', '1', write=written.append)
  assert 'compile' not in written[-1] and 'cuDNN' not in written[-1]


CHECK = 'F1126 10:59:22.604329   27248 layout.cc:234] Check failed: a == b'


@pytest.mark.parametrize(
  'code, log, said',
  [
    (-6, f'a\n{CHECK}\n*** b', 'SIGABRT: layout.cc:234] Check failed: a == b'),
    (1, CHECK, 'exit code 1: layout.cc:234] Check failed: a == b'),
    (-11, 'no check failed', 'SIGSEGV'),
  ],
)
def test_a_compiler_that_ends_its_process_is_a_row(monkeypatch, code, log, said):
  def run(command, environment, log_path, on_wait):
    Path(log_path).write_text(log, encoding='utf-8')
    return code

  monkeypatch.setattr(isolated, '_run', run)
  job = {'target_name': 'cpu', 'mesh_shape': (1, 1)}
  result = isolated.measure_in_subprocess(job, accelerators.get('cpu'), lambda: None)
  assert result == {'refused': f'the compiler ended by {said}'}


def test_a_flag_that_the_compiler_does_not_know_is_named(monkeypatch):
  def run(command, environment, log_path, on_wait):
    said = 'F1126 17:50:01.117916   25295 parse_flags_from_env.cc:234] Unknown flag in XLA_FLAGS: --xla_no_such=1\n'
    Path(log_path).write_text(said, encoding='utf-8')
    return 1

  monkeypatch.setattr(isolated, '_run', run)
  job = {'target_name': 'cpu', 'mesh_shape': (1, 1)}
  with pytest.raises(InputError, match='^XLA_FLAGS: this compiler does not know --xla_no_such=1. Take it out'):
    isolated.measure_in_subprocess(job, accelerators.get('cpu'), lambda: None)
