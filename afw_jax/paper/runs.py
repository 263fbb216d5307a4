"""The runs that make a table: an ordinary run for each row, seed and fold, in a folder that is named after it."""

import ast
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from afw_jax import workdir as run_folder
from afw_jax.config import shipped
from afw_jax.errors import InputError
from afw_jax.paper.table import Part, Row, Table
from afw_jax.system.file_names import file_name


@dataclasses.dataclass(frozen=True)
class Run:
  """One training.

  Attributes:
    name: of its folder.
    folder: the workdir of the run.
    data: name of its recipe, a section of the config.
    recipe: the shipped config that its command line starts from.
    config: all of its options.
  """

  name: str
  folder: str
  data: str
  recipe: str
  config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Member:
  """A run as part of a row of a table."""

  table: str
  part: Part
  row: Row
  seed: int
  fold: str
  run: Run


def members(
  tables: Sequence[Table], config: ml_collections.ConfigDict, workdir: str, seeds: Sequence[int]
) -> list[Member]:
  """The runs of tables, row by row; a run that several rows share is in the list for each of them.

  Args:
    tables: from `tables.build`.
    config: of `configs/paper.py`: the recipe of each data set.
    workdir: the folder of all runs.
    seeds: of each run, where a table has none of its own.

  Returns:
    Sorted by seed, so that all of the first seed is there before the others.

  Raises:
    InputError: a recipe has no such key, or a value does not fit.
  """
  made = [
    Member(table.name, part, row, seed, fold, make_run(config, workdir, part.data, row.changes, seed, fold))
    for table in tables
    for part in table.parts
    for row in part.rows
    for seed in table.seeds or (seeds[:1] if table.picture else seeds)
    for fold in part.folds
  ]
  return sorted(made, key=lambda member: member.seed)


def distinct(found: Sequence[Member]) -> list[Run]:
  """The runs of a list of members, each once, in order."""
  runs = {}
  for member in found:
    other = runs.setdefault(member.run.name, member.run)
    if _as_json(other.config) != _as_json(member.run.config):
      raise RuntimeError(f'{member.run.name} stands for two configs')
  return list(runs.values())


def make_run(
  config: ml_collections.ConfigDict, workdir: str, data: str, changes: Mapping[str, Any], seed: int, fold: str
) -> Run:
  """One run: the recipe of a data set with changes, a seed and a fold.

  Raises:
    InputError: the recipe has no such key, or a value does not fit.
  """
  resolved = config[data].copy_and_resolve_references()
  resolved.seed = seed
  different = {}
  for key, value in {**changes, **({'data.fold': fold} if fold else {})}.items():
    section, _, last = key.rpartition('.')
    try:
      holder = resolved[section] if '.' not in section else resolved[section.split('.')[0]][section.split('.')[1]]
      if holder[last] != value:
        different[key] = value
      holder[last] = value
    except (KeyError, TypeError) as error:
      raise InputError(f'{data}.{key}', f'cannot be {value!r} ({error})', 'Use the config of this version.') from error
  for key in ('root', 'store'):
    resolved.data[key] = os.path.expanduser(resolved.data[key])
  if config.paper.phantom and not resolved.data.root:
    resolved.data.root = os.path.join(workdir, 'phantoms', data)
  name = file_name('-'.join([data, resolved.model.name, resolved.loss.name, *_words(different), f'seed{seed}']))
  return Run(name, os.path.join(workdir, name), data, config.paper.recipes[data], resolved)


def _words(different: Mapping[str, Any]) -> list[str]:
  """What a name says about the changes, beside the network and the loss."""
  words = []
  for key, value in different.items():
    last = key.rpartition('.')[2]
    if key == 'data.fold':
      words.append(f'fold{value.replace("/", "of")}')
    elif key == 'model.pretrained':
      words.append('pretrained')
    elif key not in ('model.name', 'loss.name'):
      words.append(f'{last}={"+".join(map(str, value)) if isinstance(value, tuple) else value}')
  return words


def arguments(run: Run) -> list[str]:
  """The options of the command line of a run: its shipped config, its workdir, and every key that differs."""
  usual, own = (flat(config) for config in (shipped.load(run.recipe), run.config))
  changed = [f'--config.{key}={_text(value)}' for key, value in own.items() if value != usual.get(key)]
  return [f'--config={run.recipe}', f'--workdir={run.folder}', *changed]


def command(run: Run) -> list[str]:
  """The command that trains, resumes and scores a run."""
  return [sys.executable, '-m', 'afw_jax.main', *arguments(run)]


def shown_command(run: Run) -> str:
  """The command as a line of a shell."""
  return shlex.join(['python', *command(run)[1:]])


def flat(config: ml_collections.ConfigDict | Mapping, prefix: str = '') -> dict[str, Any]:
  """Key -> value of a config; the key 'a.b' is that of a section."""
  found = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict | Mapping):
      found |= flat(value, f'{prefix}{key}.')
    else:
      found[f'{prefix}{key}'] = value
  return found


def _text(value: Any) -> str:
  """A value as the command line takes it."""
  text = value if isinstance(value, str) else repr(value)
  if not isinstance(value, str) and ast.literal_eval(text) != value:
    raise RuntimeError(f'{value!r} cannot be given on a command line')
  return text


def check_folder(run: Run) -> None:
  """Raises InputError if the folder of a run holds one with another config, which would be taken for it."""
  if not run_folder.begun(run.folder):
    return
  if differing := run_folder.differences(run_folder.read_config(run.folder), _as_json(run.config)):
    raise InputError(
      run.folder,
      'holds a run of another config: '
      + '; '.join(f'{key} was {was!r}, is {now!r}' for key, (was, now) in differing.items()),
      'Choose another --workdir, or give the options that it was made with.',
    )


def _as_json(config: ml_collections.ConfigDict) -> dict:
  return json.loads(config.to_json_best_effort())
