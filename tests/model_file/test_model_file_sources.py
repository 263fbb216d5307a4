"""The program in a model file is complete, and needs no library but those that its users are told to install."""

import sys

from test_architecture import MODULES, imports, reachable

from afw_jax.model_file import sources

NEEDED = {'jax', 'numpy', 'scipy', 'nibabel'}
OPTIONAL = {'tqdm'}  # progress bars


def test_every_module_that_is_imported_is_there():
  modules = {'model_file.run'} | reachable('model_file.run')
  packages = {'.'.join(name.split('.')[:n]) for name in modules for n in range(len(name.split('.')))}
  wanted = {MODULES[name] for name in modules | packages}
  assert set(sources._modules(sources.PROGRAM)) == wanted
  foreign = {library for name in modules for library in imports(name)[1]}
  assert foreign <= NEEDED | OPTIONAL, foreign


def test_names_and_libraries():
  members = dict(sources.members())
  assert 'runner.py' in members and members['runner.py'] == members['__main__.py']
  assert 'code/afw_jax/__init__.py' in members and 'code/afw_jax/model_file/run.py' in members
  assert 'libraries/flatbuffers/table.py' in members
  assert not [name for name in members if not name.endswith('.py')]
  local = (name.split('/')[1] for name in members if name.startswith('libraries/'))
  assert set(local) == {'flatbuffers'} and 'flatbuffers' not in sys.stdlib_module_names
