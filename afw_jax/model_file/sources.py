"""The program inside a model file: the modules of this package that prediction needs, as they are here."""

import ast
import importlib.metadata
import pathlib
from collections.abc import Iterator

from afw_jax.errors import InputError

CODE, LIBRARIES = 'code', 'libraries'  # folders in the model file
PROGRAM = 'afw_jax.model_file.run'
_PACKAGE = pathlib.Path(__file__).parents[1]
_FLATBUFFERS = 'flatbuffers'  # reads a serialised program; jax does not install it


def members() -> Iterator[tuple[str, bytes]]:
  """(name in the model file, content) of the program, and of the library that reads the serialised networks.

  Raises:
    InputError: that library is not installed.
  """
  runner = (_PACKAGE / 'model_file' / 'runner.py').read_bytes()
  yield 'runner.py', runner
  yield '__main__.py', runner  # so that `python model.zip SCAN LABELS` works
  for path in _modules(PROGRAM):
    yield f'{CODE}/{path.relative_to(_PACKAGE.parent).as_posix()}', path.read_bytes()
  try:
    files = importlib.metadata.files(_FLATBUFFERS) or []
  except importlib.metadata.PackageNotFoundError as error:
    raise InputError('flatbuffers', 'is not installed, and exporting needs it', 'pip install flatbuffers') from error
  for file in sorted(files):
    if file.suffix == '.py':
      yield f'{LIBRARIES}/{file.as_posix()}', file.read_binary()


def _modules(name: str) -> list[pathlib.Path]:
  """The files of this package that importing a module runs, sorted."""
  found, todo = set(), [name]
  while todo:
    parts = todo.pop().split('.')
    for n in range(1, len(parts) + 1):  # a package is run before what is in it
      path = _file(parts[:n])
      if path is None or path in found:
        continue
      found.add(path)
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
          todo += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
          todo += [f'{node.module}.{alias.name}' for alias in node.names]
  return sorted(found)


def _file(parts: list[str]) -> pathlib.Path | None:
  """The file of a module or package of ours; None for any other name."""
  base = _PACKAGE.joinpath(*parts[1:])
  files = (base / '__init__.py', base.with_suffix('.py')) if parts[0] == _PACKAGE.name else ()
  return next((path for path in files if path.is_file()), None)
