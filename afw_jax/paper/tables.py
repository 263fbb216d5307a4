"""The tables of the paper, and Figures 3 to 7, as data: which runs they need, and what the paper published."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from afw_jax.config.build import store_options
from afw_jax.data.sets.case_files import normal_name
from afw_jax.errors import InputError, did_you_mean
from afw_jax.paper import results, study
from afw_jax.paper.results import Published
from afw_jax.paper.table import Part, Row, Table, split

LOSSES = {'focal_dice': 'Focal + Dice', 'ce_gd': 'CE + GD', 'ce_dice': 'CE + Dice', 'ce_afw': 'CE + AFW-Dice'}
_TITLES = {'synapse': 'Synapse', 'abdomenct1k': 'AbdomenCT-1K'}
_NETWORKS = {'unetpp': 'UNet++', 'transunet': 'TransUNet', 'vatransunet': 'VATransUNet'}
_NETWORKS_3D = {'unetr': 'UNETR', 'unetrpp': 'UNETR++'}
_GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _by_loss(data: str, published: Mapping[str, Published]) -> tuple[Part, ...]:
  rows = (
    Row(label, {'loss.name': name}, published[name], None if name == 'ce_dice' else LOSSES['ce_dice'])
    for name, label in LOSSES.items()
  )
  return (Part(data, _TITLES[data], tuple(rows)),)


def _ablation(off: str, on: str, changes: Mapping[str, Any], published: Mapping) -> tuple[Part, ...]:
  """AFW-Dice with some of its options changed, and as it is."""
  return tuple(
    Part(
      data,
      title,
      (
        Row(off, {'loss.name': 'ce_afw', **changes}, published[data][0]),
        Row(on, {'loss.name': 'ce_afw'}, published[data][1], off),
      ),
    )
    for data, title in _TITLES.items()
  )


def _pair(network: str, label: str, published: tuple[Published, Published], **more) -> tuple[Row, Row]:
  """A network with CE + Dice and with CE + AFW-Dice."""
  plain = f'{label}, {LOSSES["ce_dice"]}'
  changes = {'model.name': network, **more}
  return (
    Row(plain, {**changes, 'loss.name': 'ce_dice'}, published[0]),
    Row(f'{label}, {LOSSES["ce_afw"]}', {**changes, 'loss.name': 'ce_afw'}, published[1], plain),
  )


def _networks(options: ml_collections.ConfigDict) -> tuple[Part, ...]:
  weights = {name: path for name, path in options.pretrained.items() if path}
  more = lambda network: {'model.pretrained': weights[network]} if network in weights else {}
  return tuple(
    Part(
      data,
      title,
      tuple(
        row for name, label in _NETWORKS.items() for row in _pair(name, label, results.TABLE5[data][name], **more(name))
      ),
    )
    for data, title in _TITLES.items()
  )


def _volumes() -> tuple[Part, ...]:
  pairs = [_pair(name, label, results.TABLE6[name]) for name, label in _NETWORKS_3D.items()]
  return (Part('abdomenct1k_3d', 'AbdomenCT-1K, volumes', tuple(row for rows in zip(*pairs) for row in rows)),)


def _of_gamma() -> tuple[Part, ...]:
  label = lambda gamma: f'gamma = {gamma:g}'
  rows = (
    Row(
      label(gamma),
      {'loss.name': 'ce_afw', 'loss.ce_afw.gamma': gamma},
      against=None if gamma == 1 else label(1),
      x=gamma,
    )
    for gamma in _GAMMAS
  )
  return (Part('chaos', 'CHAOS', tuple(rows)),)


def _of_focus(config: ml_collections.ConfigDict) -> tuple[Part, ...]:
  organs = split(config.paper.focus)
  _check_focus(organs, config.chaos.data)
  rows = []
  for n in range(len(organs) + 1):
    label = 'no organ' if n == 0 else 'every organ' if n == len(organs) else ', '.join(organs[:n])
    # Nothing is focused: the same as the exponent 1. Every organ: the default, (), so that the run is shared.
    changes = {'loss.ce_afw.gamma': 1.0} if n == 0 else {'loss.ce_afw.rare': organs[:n] if n < len(organs) else ()}
    rows.append(Row(label, {'loss.name': 'ce_afw', **changes}, against=rows[0].label if rows else None, x=n))
  return (Part('chaos', 'CHAOS', tuple(rows)),)


def _check_focus(focus: tuple[str, ...], data: ml_collections.ConfigDict) -> None:
  """Raises InputError where the organs to focus are not all of the data set, each once: the last row claims that."""
  root = os.path.expanduser(data.root)
  known = data.dataset != 'folder' or os.path.isdir(root)
  organs = store_options(data).spec(root).organs if known else tuple(dict.fromkeys(focus))
  if sorted(map(normal_name, focus)) != sorted(organs) or not focus:
    raise InputError(
      'paper.focus',
      f'names {", ".join(focus) or "no organ"}' + (f'; the data set has {", ".join(organs)}' if known else ''),
      'Name each organ of the data set once, in the order in which they are focused.',
    )


_VALIDATION = 'The data set has no test cases: the validation cases are scored, as in the paper.'

TABLES: dict[str, Callable[[ml_collections.ConfigDict], list[Table]]] = {
  'table1': lambda _: [Table('table1', 'Losses on Synapse (UNet)', _by_loss('synapse', results.TABLE1))],
  'table2': lambda _: [Table('table2', 'Losses on AbdomenCT-1K (UNet)', _by_loss('abdomenct1k', results.TABLE2))],
  'table3': lambda _: [
    Table(
      'table3',
      'Weights learned by uncertainty (UNet, CE + AFW-Dice)',
      _ablation('equal weights', 'learned weights', {'loss.ce_afw.learned_weights': False}, results.TABLE3),
    )
  ],
  'table4': lambda _: [
    Table(
      'table4',
      'Symmetric and asymmetric focus (UNet, CE + AFW-Dice)',
      _ablation('symmetric', 'asymmetric', {'loss.ce_afw.symmetric': True}, results.TABLE4),
    )
  ],
  'table5': lambda config: [Table('table5', 'Other 2D networks', _networks(config.paper))],
  'table6': lambda _: [Table('table6', '3D networks on AbdomenCT-1K', _volumes())],
  'figure3': lambda _: [
    Table('figure3', 'DSC against the exponent', _of_gamma(), axis='exponent gamma', remark=_VALIDATION)
  ],
  'figure4': lambda config: [
    Table(
      'figure4',
      'DSC against the number of focused organs',
      _of_focus(config),
      axis='number of focused organs',
      remark=f'{_VALIDATION} Which organs are focused where not all are is not known of the paper.',
    )
  ],
  'figure5': lambda _: [
    Table('figure5', 'Losses on Synapse (UNet)', _by_loss('synapse', results.TABLE1), picture='overlays')
  ],
  'figure6': lambda _: [
    Table('figure6', 'Losses on AbdomenCT-1K (UNet)', _by_loss('abdomenct1k', results.TABLE2), picture='overlays')
  ],
  'figure7': lambda _: [Table('figure7', '3D networks on AbdomenCT-1K', _volumes(), picture='surfaces')],
}

# The sections of the config that each needs.
SECTIONS = {
  'table1': ('synapse',),
  'table2': ('abdomenct1k',),
  **dict.fromkeys(('table3', 'table4', 'table5'), ('synapse', 'abdomenct1k')),
  'table6': ('abdomenct1k_3d',),
  **dict.fromkeys(('figure3', 'figure4'), ('chaos',)),
  'figure5': ('synapse',),
  'figure6': ('abdomenct1k',),
  'figure7': ('abdomenct1k_3d',),
  'losses': ('chaos_mr',),
}


def build(config: ml_collections.ConfigDict) -> list[Table]:
  """The tables that a config names, each once.

  Args:
    config: of `configs/paper.py`.

  Raises:
    InputError: there is no such table, or the data set of a table has no section in the config.
  """
  makers = {**TABLES, 'losses': study.losses}
  found = [table for name in expand(config.paper.tables) for table in makers[name](config)]
  for table in found:
    for part in table.parts:
      if part.data not in config:
        raise InputError('--config', f'has no section {part.data!r}, which {table.name} needs', 'See configs/paper.py.')
  return list({table.name: table for table in found}.values())


def expand(variants: str) -> list[str]:
  """The names of tables in 'table1,table3'; 'all' stands for everything of the paper.

  Raises:
    InputError: a name is not known.
  """
  known, names = (*TABLES, 'losses'), []
  for name in split(variants):
    if name not in known and name != 'all':
      raise InputError(
        f'configs/paper.py:{variants}',
        f'there is no {name!r}',
        f'{did_you_mean(name, known)}Use one or several of {", ".join((*known, "all"))}, and phantom with them.',
      )
    names += TABLES if name == 'all' else [name]
  return list(dict.fromkeys(names))
