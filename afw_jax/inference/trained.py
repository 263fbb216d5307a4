"""Loads the network of a trained run for prediction."""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from afw_jax import models
from afw_jax.distributed import runtime, sharding
from afw_jax.errors import InputError
from afw_jax.inference import forward
from afw_jax.inference.forward import PyTree
from afw_jax.inference.network import Trained, image_shape, precision_of
from afw_jax.model_file import networks
from afw_jax.training import checkpoint


def read_meta(workdir: str | os.PathLike, which: str) -> tuple[str, dict]:
  """The folder of the checkpoints of a trained run, and the meta of the newest of them.

  Args:
    workdir: of the run.
    which: 'best' (the last one where nothing was validated) or 'last'.

  Raises:
    InputError: `which` is neither, there is no checkpoint, or its meta cannot be read.
  """
  if which not in ('best', 'last'):
    raise InputError('eval.checkpoint', f'{which!r} is not a valid checkpoint', "Use 'best' or 'last'.")
  workdir = os.path.expanduser(workdir)
  folder = os.path.join(workdir, 'checkpoints', which)
  if which == 'best' and not checkpoint.steps_in(folder):  # nothing was validated, or its first save is under way
    folder = os.path.join(workdir, 'checkpoints', 'last')
  meta = checkpoint.read_meta(folder)
  if meta is None:
    raise InputError(
      workdir, 'there is no checkpoint in it', 'Train first (--mode=train), or give the --workdir of a finished run.'
    )
  return folder, meta


def _find(workdir: str | os.PathLike, which: str) -> tuple[dict, Callable[[PyTree], tuple[PyTree, dict]]]:
  """(meta of a network, what restores its variables and meta) of a run, or of a model file."""
  workdir = os.path.expanduser(workdir)
  if not networks.is_in_file(workdir):
    folder, meta = read_meta(workdir, which)
    return meta, functools.partial(checkpoint.restore_variables, folder)
  _, network = networks.read(workdir)
  meta = network['meta']
  if which == 'last' != meta['checkpoint']:
    what = f'holds the checkpoint {meta["checkpoint"]!r} alone'
    raise InputError(workdir, what, 'Leave --checkpoint out, or export the last one.')
  return meta, lambda abstract: (networks.read_weights(workdir, abstract), meta)


def meta_of(workdir: str | os.PathLike, which: str = 'best') -> dict:
  """The meta of the network of a trained run or of a model file; InputError as `load`."""
  return _find(workdir, which)[0]


def load(
  workdir: str | os.PathLike,
  *,
  which: str = 'best',
  mirror_axes: Sequence[int] = (),
  matmul_precision: str | None = None,
) -> Trained:
  """Loads the network of a trained run, or of a model file, onto all devices of this process.

  Args:
    workdir: of the run; or a model file, FILE/1, FILE/2, ... where it holds several networks.
    which: 'best' (by validation DSC; the last one where nothing was validated) or 'last' checkpoint.
    mirror_axes: spatial axes to average predictions over; see `forward.mirror_averaged`.
    matmul_precision: of the products in the network, one of `models.PRECISIONS`; None: that of the run.

  Raises:
    InputError: an option is not valid, there is no checkpoint, it is torn or altered, or it is of another network.
  """
  meta, restore = _find(workdir, which)
  network = meta['model']
  # A volume that was divided over several devices in training may be too large for one.
  mesh = runtime.local_mesh(meta['config'].get('mesh', {}).get('spatial', 1))
  model = models.build(
    network['name'], num_classes=network['num_classes'], constrain=sharding.make_constrain(mesh), **network['options']
  )
  abstract = models.abstract_variables(model, image_shape(meta))
  everywhere = sharding.replicated(mesh)
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), abstract)
  variables, meta = restore(abstract)
  predict_step = forward.mirror_averaged(forward.make_predict_step(model), mirror_axes)
  predict_step = models.at_precision(matmul_precision or precision_of(meta), predict_step)
  return Trained(sharding.jit_over_mesh(mesh, predict_step), variables, meta)


def read_variables(workdir: str | os.PathLike, which: str = 'best') -> tuple[PyTree, dict]:
  """The arrays of the network of a trained run or a model file, to start another training from.

  Args:
    workdir: of the run; or a model file, as in `load`.
    which: as in `load`.

  Returns:
    ({'params':, 'batch_stats':, 'log_sigma_sq': (C,)}, meta), with arrays on the host; a model file has no
    'log_sigma_sq'.

  Raises:
    InputError: as `load`.
  """
  meta, restore = _find(workdir, which)
  network = meta['model']
  model = models.build(network['name'], num_classes=network['num_classes'], **network['options'])
  abstract = models.abstract_variables(model, image_shape(meta))
  if not networks.is_in_file(os.path.expanduser(workdir)):
    abstract['log_sigma_sq'] = jax.ShapeDtypeStruct((network['num_classes'],), np.float32)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), abstract)
  variables, meta = restore(abstract)
  return jax.device_get(variables), meta
