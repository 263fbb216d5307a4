"""Networks whose probabilities can be averaged, and how the record of predictions names them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from afw_jax.data.sets import intensities
from afw_jax.errors import InputError
from afw_jax.inference.averaging import in_order_of
from afw_jax.inference.network import Trained
from afw_jax.training import checkpoint


def alike(loaded: Mapping[str, Trained], mirror_axes: Sequence[int] = ()) -> list[Trained]:
  """Checks that the probabilities of networks can be averaged, and brings them into the order of the first.

  Args:
    loaded: workdir -> its network.
    mirror_axes: that they were loaded with.

  Returns:
    The networks; those of the same kind share one program, which is compiled once.

  Raises:
    InputError: runs of other organs (by name), another modality, scale of intensities or channels, the same checkpoint
      twice, or axes to mirror for networks of slices and of volumes.
  """
  (where, first), *others = loaded.items()
  digests = {_digest(first): where}
  networks, programs = [first], {_program(first): first.predict_step}
  for workdir, trained in others:
    if unlike := sorted(set(trained.organs) ^ set(first.organs)):
      what = f'has other organs than {where}: {", ".join(unlike)} only in one of them'
      raise InputError(workdir, what, 'Average runs of the same organs.')
    for name, of in (
      ('modality', lambda t: t.meta['data'].get('modality')),
      ('scale of intensities', _scale),
      ('list of channels', _channels),
    ):
      if of(trained) != of(first):
        what = f'was trained on another {name} ({of(trained)}) than {where} ({of(first)})'
        raise InputError(workdir, what, 'Average runs that can predict the same scans.')
    if (same := digests.setdefault(_digest(trained), workdir)) != workdir:
      raise InputError(workdir, f'has the same checkpoint as {same}', 'Give each run once.')
    if mirror_axes and len(trained.input_size) != len(first.input_size):
      raise InputError(
        '--mirror_axes',
        f'{list(mirror_axes)} are other axes for the slices of a 2D network than for the volumes of a 3D one',
        f'Leave it out for {where} with {workdir}.',
      )
    trained = dataclasses.replace(trained, predict_step=programs.setdefault(_program(trained), trained.predict_step))
    networks.append(in_order_of(first, trained))
  return networks


def _digest(trained: Trained) -> str:
  return trained.meta.get('checkpoint_sha256') or checkpoint.digest(trained.meta)  # the former in a model file


def _scale(trained: Trained) -> str:
  return 'HU' if intensities.is_hu(trained.meta['data']['options']) else 'not in HU'


def _channels(trained: Trained) -> str:
  return ', '.join(f'{c.name} {"in HU" if c.in_hu else "not in HU"}'.strip() for c in trained.channels)


def _program(trained: Trained) -> str:
  """What tells the compiled forward pass of a network from others that were loaded with the same options."""
  runtime, mesh = (trained.meta['config'].get(section, {}) for section in ('runtime', 'mesh'))
  used = (trained.meta['model'], runtime.get('matmul_precision'), mesh.get('spatial'))
  return json.dumps(used, sort_keys=True)


def checkpoints(networks: Sequence[Trained], workdirs: Sequence[str]) -> dict:
  """The entry 'checkpoint' of the record of predictions: 'sha256' and the step and workdir of each network."""
  each = [
    {'step': trained.meta['step'], 'sha256': _digest(trained), 'workdir': os.fspath(workdir)}
    for trained, workdir in zip(networks, workdirs, strict=True)
  ]
  if len(each) == 1:
    return each[0]
  together = hashlib.sha256(' '.join(one['sha256'] for one in each).encode()).hexdigest()
  return {'sha256': together, 'average_of': each}


def option(values: Iterable) -> object:
  """An option in the record of predictions: its value, or those of all networks where they differ."""
  values = list(values)
  return values[0] if all(value == values[0] for value in values) else values
