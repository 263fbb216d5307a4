"""The house rules that a machine can keep: who imports whom, short files, no junk rooms."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'afw_jax'
FILES = sorted(PACKAGE.rglob('*.py'))

PURE = {'errors', 'losses', 'models', 'augment', 'augment_volume', 'optimizer', 'metrics', 'surface', 'statistics', 'xla_flags',
        'data.datasets', 'data.specs_public', 'data.specs_folder', 'data.phantom_anatomy'}
MECHANISM = {'step', 'accumulate', 'inference', 'windows', 'sharding', 'targets', 'processes', 'checkpoint', 'validation', 'writer', 'progress', 'convert', 'weights_file', 'pretrained', 'canvas', 'runs', 'tables', 'overlays', 'data.geometry', 'data.volumes', 'data.nifti',
             'data.dicom', 'data.png_masks', 'data.transunet', 'data.layouts', 'data.resample', 'data.store',
             'data.pipeline', 'data.crops', 'data.cases', 'data.phantom', 'data.checks', 'data.pool',
             'data.cluster', 'data.selection', 'data.publish'}
COMPOSITION = {'adopt', 'assembly', 'plan', 'train', 'evaluate', 'predict', 'report', 'figures', 'workdir', 'data.prepare'}
LAYERS = [PURE, MECHANISM, COMPOSITION, {'main'}]
# Which foreign library may be imported where; a name missing here may be imported anywhere.
OWNERS = {
    'orbax': {'checkpoint'}, 'grain': {'data.pipeline'}, 'nibabel': {'data.nifti'}, 'pydicom': {'data.dicom'},
    'PIL': {'data.png_masks'}, 'h5py': {'data.transunet'}, 'matplotlib': {'canvas'}, 'tensorboardX': {'writer'},
    'safetensors': {'weights_file'}, 'torch': {'weights_file'}, 'dask': {'data.cluster'}, 'distributed': {'data.cluster'},
}
EVERYWHERE = {'jax', 'flax', 'optax', 'numpy', 'scipy', 'tqdm', 'absl', 'ml_collections', 'afw_jax'}


def room(path: pathlib.Path) -> str:
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return parts[0] if parts[0] in ('losses', 'models') else '.'.join(p for p in parts if p != '__init__')


def imported(path: pathlib.Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      names |= {f'{node.module}.{a.name}' for a in node.names}
  return names


def layer(name: str) -> int:
  for i, rooms in enumerate(LAYERS):
    if name in rooms:
      return i
  raise AssertionError(f'{name} belongs to no layer: name it in tests/test_architecture.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
  here = room(path)
  if here in ('', 'data'):  # package docstrings import nothing
    assert not {n for n in imported(path) if n.startswith('afw_jax')}
    return
  for name in imported(path):
    if not name.startswith('afw_jax.'):
      continue
    parts = name.split('.')[1:]
    target = parts[0] if parts[0] in ('losses', 'models') else '.'.join(parts[:2] if parts[0] == 'data' else parts[:1])
    if target not in ('data', here):
      assert layer(target) <= layer(here), f'{here} must not import {target}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_foreign_library_has_one_owner(path):
  here = room(path)
  for name in imported(path):
    library = name.split('.')[0]
    if library in OWNERS:
      assert here in OWNERS[library], f'{library} belongs to {OWNERS[library]}, not to {here}'
  if here == 'losses':
    assert {n.split('.')[0] for n in imported(path)} & (set(OWNERS) | EVERYWHERE) <= {'jax', 'numpy', 'afw_jax'}


def test_config_stops_at_the_door():
  for path in FILES:
    if room(path) not in COMPOSITION | {'main'}:
      assert not any(n.startswith('ml_collections') for n in imported(path)), path


def test_files_are_short():
  for path in [*FILES, *(ROOT / 'configs').glob('*.py'), *(ROOT / 'benchmarks').glob('*.py'), *(ROOT / 'tests').rglob('*.py')]:
    lines = len(path.read_text().splitlines())
    assert lines <= 300, f'{path} has {lines} lines'


def test_no_junk_rooms():
  assert not {p.stem for p in FILES} & {'util', 'utils', 'helper', 'helpers', 'misc', 'common_utils'}
