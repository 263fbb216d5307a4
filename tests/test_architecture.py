"""The rules of docs/architecture.md that a machine can check: who imports whom, who owns a library, short files."""

import ast
import functools
import graphlib
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'afw_jax'
FILES = sorted(PACKAGE.rglob('*.py'))

# Layers from the ground up: a module imports from its own layer and those below. The longest matching prefix counts.
LAYERS = {
  'pure': (
    'errors',
    'system',
    'preprocess',
    'losses',
    'models',
    'metrics',
    'training.optimizer',
    'training.augment',
    'training.affine2d',
    'training.affine3d',
    'report.blocks',
    'report.choice',
    'report.notes',
    'report.stats',
    'data.sets',
    'data.selection',
    'data.phantom.anatomy',
    'distributed.xla_flags',
  ),
  'mechanism': (
    'training',
    'inference',
    'model_file',
    'weights',
    'distributed',
    'planning.accelerators',
    'planning.collectives',
    'planning.table',
    'report.label_maps',
    'report.runs',
    'report.case_records',
    'report.tables',
    'report.overlays',
    'report.surfaces',
    'report.style',
    'data',
  ),
  'composition': (
    'config',
    'workdir',
    'check',
    'prepare',
    'train',
    'evaluate',
    'cross_validation',
    'predict',
    'export_model',
    'import_run',
    'view',
    'planning',
    'report',
    'paper',
    'data.preparation.prepare',
  ),
  'entry': ('main', 'options', 'command_line', 'data.phantom.__main__'),
}
RANKS = {prefix: rank for rank, prefixes in enumerate(LAYERS.values()) for prefix in prefixes}
# Foreign libraries and the only modules that may import them; one that is not named here may not be imported at all.
EVERYWHERE = {'jax', 'numpy', 'scipy'}
OWNERS = {
  'flax': ('models', 'weights', 'import_run'),
  'optax': ('training.optimizer', 'training.step'),
  'ml_collections': (*LAYERS['composition'], 'main', 'options'),
  'absl': ('main', 'options', 'data.pipeline'),
  'orbax': ('training.checkpoint', 'training.checkpoint_writer', 'training.checkpoint_disk'),
  'etils': ('training.checkpoint_disk',),
  'grain': ('data.pipeline',),
  'nibabel': ('data.formats.nifti_header',),
  'pydicom': (
    'data.formats.dicom',
    'data.formats.dicom_pixels',
    'data.formats.dicom_series',
    'data.formats.dicom_seg',
    'data.formats.dicom_seg_source',
  ),
  'highdicom': ('data.formats.dicom_seg',),
  'tqdm': ('system.terminal',),
  'PIL': ('data.formats.png_masks', 'report.page.pictures'),
  'h5py': ('data.formats.transunet_files',),
  'matplotlib': ('report.style',),
  'tensorboardX': ('training.metric_writer',),
  'SimpleITK': ('data.formats.itk_files',),
  'wandb': ('training.tracker',),
  'mlflow': ('training.tracker',),
  'safetensors': ('weights.files',),
  'torch': ('weights.files',),
  'distributed': ('data.preparation.dask_cluster',),
}
JAX_PRIVATE = 'distributed.coordination'  # the only module that may use jax._src; its docstring says why
LOSSES_NEED = {'jax', 'numpy'}  # the losses can be lifted into any program


def module(path: pathlib.Path) -> str:
  return '.'.join(part for part in path.relative_to(PACKAGE).with_suffix('').parts if part != '__init__')


MODULES = {module(path): path for path in FILES}


def within(name: str, prefixes) -> bool:
  return any(name == prefix or name.startswith(f'{prefix}.') for prefix in prefixes)


@functools.cache
def imports(name: str) -> tuple[frozenset[str], frozenset[str]]:
  """(modules of this package, foreign libraries) that a module imports, wherever in it."""
  ours, foreign = set(), set()
  for node in ast.walk(ast.parse(MODULES[name].read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      targets = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} imports relatively'
      targets = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for target in targets:
      library, _, rest = target.partition('.')
      if library == 'afw_jax':
        ours.add(next(m for m in (rest, rest.rpartition('.')[0], '') if m in MODULES))
      elif library not in sys.stdlib_module_names:
        foreign.add(library)
  return frozenset(ours), frozenset(foreign)


def rank(name: str) -> int:
  matching = [prefix for prefix in RANKS if within(name, [prefix])]
  assert matching, f'{name} belongs to no layer: name it in tests/test_architecture.py'
  return RANKS[max(matching, key=len)]


@pytest.mark.parametrize('name', filter(None, MODULES))
def test_imports_point_down(name):
  for target in imports(name)[0] - {''}:
    assert rank(target) <= rank(name), f'{name} must not import {target}'


def test_nothing_imports_in_a_circle():
  graphlib.TopologicalSorter({name: imports(name)[0] - {name} for name in MODULES}).prepare()


def reachable(name: str) -> set[str]:
  """All modules of this package that importing a module runs."""
  found, todo = set(), [name]
  while todo:
    for target in imports(todo.pop())[0] - found:
      found.add(target)
      todo.append(target)
  return found


def test_prediction_does_not_need_the_preparation_of_data_sets():
  assert 'data.working_grid' in reachable('predict')
  for forbidden in ('data.preparation', 'data.sets.lookup', 'data.sets.layouts'):
    assert not [name for name in reachable('predict') if within(name, [forbidden])]


@pytest.mark.parametrize('name', MODULES)
def test_each_foreign_library_has_an_owner(name):
  for library in imports(name)[1] - EVERYWHERE:
    assert library in OWNERS, f'{library} belongs to no module: name its owner in tests/test_architecture.py'
    assert within(name, OWNERS[library]), f'{library} belongs to {OWNERS[library]}, not to {name}'


@pytest.mark.parametrize('name', [name for name in MODULES if within(name, ['losses'])])
def test_losses_can_be_lifted_into_any_program(name):
  ours, foreign = imports(name)
  assert foreign <= LOSSES_NEED and all(within(target, ['losses', 'errors']) for target in ours - {''})


def test_one_module_uses_what_jax_does_not_publish():
  for path in [*FILES, *(path for folder in ('configs', 'benchmarks') for path in (ROOT / folder).rglob('*.py'))]:
    text = path.read_text(encoding='utf-8')
    assert not re.search(r'jax\._src|from jax import _src', text) or path == MODULES[JAX_PRIVATE], path


@pytest.mark.parametrize('name', filter(None, MODULES))
def test_messages_go_to_the_logger_that_the_command_line_shows(name):
  """`main` silences the loggers of other libraries, absl's among them, and the root logger is not ours."""
  text = MODULES[name].read_text(encoding='utf-8')
  assert not re.search(r'\blogging\.(debug|info|warning|warn|error|exception|log)\(', text)
  # `main` and `runtime` set the levels of other libraries' loggers, `devices` collects JAX's warnings.
  if name not in ('main', 'distributed.runtime', 'distributed.devices'):
    assert set(re.findall(r'getLogger\((.*?)\)', text)) <= {"'afw_jax'"}
    assert not re.search(r'\babsl(_logging|\.logging)\b|from absl import .*logging', text)


def test_files_are_short():
  for path in [
    *FILES,
    *(path for folder in ('configs', 'benchmarks', 'tests') for path in (ROOT / folder).rglob('*.py')),
  ]:
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= 300, f'{path} has {lines} lines'


def test_no_junk_modules():
  assert not {path.stem for path in FILES} & {'util', 'utils', 'helper', 'helpers', 'misc', 'common_utils'}
