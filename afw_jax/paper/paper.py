"""--mode=paper: trains what the tables and figures of the paper need, and collects them from whatever is there."""

import importlib.util
import logging
import os
from collections.abc import Sequence

import jax
import ml_collections

from afw_jax.data.preparation.shard import parse_shard
from afw_jax.errors import InputError, InputErrors
from afw_jax.paper import collect, cost, figures, phantoms, pictures, render, schedule, states, tables
from afw_jax.paper.runs import Member, distinct, members
from afw_jax.paper.table import Table, split
from afw_jax.report.page import document
from afw_jax.system import atomic_files, locks, terminal

_log = logging.getLogger('afw_jax')


def make(
  config: ml_collections.ConfigDict,
  workdir: str,
  seeds: Sequence[str],
  *,
  shard: str = '',
  dry_run: bool = False,
  collect_only: bool = False,
) -> None:
  """Trains and scores the missing runs, and writes the tables into WORKDIR/tables after each of them.

  Args:
    config: of `configs/paper.py`.
    workdir: the folder of all runs.
    seeds: numbers, as text.
    shard: 'i/n', the runs that this process trains; '': those of the SLURM array task, or all.
    dry_run: print what is missing, and train and write nothing.
    collect_only: write the tables from what is there, and train nothing.

  Raises:
    InputError, InputErrors: what is wrong with the options, or which runs failed.
    SystemExit: interrupted by Ctrl-C (130) or SIGTERM (143).
  """
  jax.config.update('jax_platforms', 'cpu')  # the devices are for the runs, which are processes of their own
  workdir = os.path.expanduser(workdir)
  wanted = tables.build(config)
  found = members(wanted, config, workdir, _numbers(seeds))
  runs = distinct(found)
  part = parse_shard(shard, os.environ)
  own = runs[part[0] :: part[1]] if part else runs
  if dry_run:
    for line in cost.lines(own):
      terminal.say(line)
    return
  if collect_only and not os.path.isdir(workdir):
    raise InputError('--workdir', f'there is no folder {workdir}', 'Give the folder of the runs to collect.')
  write = lambda: write_tables(os.path.join(workdir, 'tables'), wanted, found, phantom=config.paper.phantom)
  failed = []
  if not collect_only:
    if config.paper.phantom:
      phantoms.write(workdir, dict.fromkeys(run.data for run in own))
    failed = schedule.work(own, say=terminal.say, finished=write)
  for path in write():
    terminal.say(path)
  if failed:
    raise InputErrors(failed) if len(failed) > 1 else failed[0]


def write_tables(folder: str, wanted: Sequence[Table], found: Sequence[Member], *, phantom: bool) -> list[str]:
  """Writes a Markdown, CSV and LaTeX file, a picture and a page for each table, from whatever is there.

  Args:
    folder: of the files.
    wanted: the tables.
    found: of `runs.members`.
    phantom: whether the runs are those of synthetic scans.

  Returns:
    The paths of the Markdown files.

  Raises:
    InputError, InputErrors: a file of a run is damaged, runs of a table were not scored alike (the other tables are
      written), or the folder cannot be written.
  """
  can_draw = importlib.util.find_spec('matplotlib') is not None
  if not can_draw:
    _log.warning('no pictures: matplotlib is not installed (pip install afw_jax[viz])')
  paths, errors = [], []
  with locks.locked(os.path.join(folder, '.lock')):  # who writes last has read last
    done = {run.name for run in distinct(found) if states.is_done(run)}
    for table in wanted:
      path = os.path.join(folder, table.name)
      try:
        filled = (figures if table.picture else collect).collect(table, found, done)
      except InputError as error:
        errors.append(error)
        continue
      form = figures if table.picture else render
      for ending, text in (('.csv', form.as_csv), ('.tex', form.as_tex), ('.md', form.as_markdown)):
        atomic_files.write_text(path + ending, text(table, filled, phantom=phantom))
      if can_draw:
        (figures if table.picture else pictures).draw(f'{path}.png', table, filled, phantom=phantom)
      blocks = form.as_blocks(table, filled, f'{path}.png' if can_draw else '', phantom=phantom)
      atomic_files.write_text(f'{path}.html', document.page(blocks))
      paths.append(f'{path}.md')
  if errors:
    raise InputErrors(errors) if len(errors) > 1 else errors[0]
  return paths


def _numbers(seeds: Sequence[str]) -> list[int]:
  texts = split(','.join(seeds))
  if not texts or not all(text.isdecimal() for text in texts):
    raise InputError('--seeds', f'{",".join(seeds)!r} are not seeds', 'Give numbers from 0: --seeds=0,1,2.')
  return list(dict.fromkeys(map(int, texts)))
