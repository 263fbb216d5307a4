"""The network of a trained run, loaded for prediction, with what its checkpoint says about it."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from afw_jax import models
from afw_jax.distributed import runtime, sharding
from afw_jax.errors import InputError
from afw_jax.inference import forward
from afw_jax.training import checkpoint

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Trained:
  """The network of a trained run, with everything that is needed to segment a scan.

  Attributes:
    predict_step: jitted, (variables, raw image (B, *S, 1), window (B, 2)) -> probabilities (B, *S, C).
    variables: of the network.
    meta: of the checkpoint: config, model, data (organs, window, options of the working grid).
  """

  predict_step: forward.PredictStep
  variables: Any
  meta: dict

  @property
  def organs(self) -> tuple[str, ...]:
    """Names of classes 1..C-1."""
    return tuple(self.meta['data']['organs'])

  @property
  def labels(self) -> dict[str, int]:
    """Organ name -> class id."""
    return {organ: c for c, organ in enumerate(self.organs, 1)}

  @property
  def input_size(self) -> tuple[int, ...]:
    """Spatial shape the network was trained on: (h, w) of slices, (d, h, w) of volumes or crops."""
    return tuple(self.meta['model']['input_size'])

  def file_ids(self, labels: np.ndarray) -> np.ndarray:
    """Class ids -> the ids in the label files of the data set; uint8 of the same shape, uint16 if one exceeds 255."""
    ids = [0, *(self.meta['data']['output_ids'][organ] for organ in self.organs)]
    return np.array(ids, np.min_scalar_type(max(ids)))[labels]


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


def load(
  workdir: str | os.PathLike,
  *,
  which: str = 'best',
  mirror_axes: Sequence[int] = (),
  matmul_precision: str | None = None,
) -> Trained:
  """Loads the network of a trained run onto all devices of this process.

  Args:
    workdir: of the run.
    which: 'best' (by validation DSC; the last one where nothing was validated) or 'last' checkpoint.
    mirror_axes: spatial axes to average predictions over; see `forward.mirror_averaged`.
    matmul_precision: of the products in the network, one of `models.PRECISIONS`; None: that of the run.

  Raises:
    InputError: an option is not valid, there is no checkpoint, it is torn or altered, or it is of another network.
  """
  folder, meta = read_meta(workdir, which)
  network = meta['model']
  # A volume that was divided over several devices in training may be too large for one.
  mesh = runtime.local_mesh(meta['config'].get('mesh', {}).get('spatial', 1))
  model = models.build(
    network['name'], num_classes=network['num_classes'], constrain=sharding.make_constrain(mesh), **network['options']
  )
  abstract = models.abstract_variables(model, (1, *network['input_size'], 1))
  everywhere = sharding.replicated(mesh)
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), abstract)
  variables, meta = checkpoint.restore_variables(folder, abstract)
  predict_step = forward.mirror_averaged(forward.make_predict_step(model), mirror_axes)
  predict_step = models.at_precision(matmul_precision or precision_of(meta), predict_step)
  return Trained(sharding.jit_over_mesh(mesh, predict_step), variables, meta)


def read_variables(workdir: str | os.PathLike, which: str = 'best') -> tuple[PyTree, dict]:
  """The arrays of the network of a trained run, to start another training from.

  Args:
    workdir: of the run.
    which: as in `load`.

  Returns:
    ({'params':, 'batch_stats':, 'log_sigma_sq': (C,)}, meta), with arrays on the host.

  Raises:
    InputError: as `load`.
  """
  folder, meta = read_meta(workdir, which)
  network = meta['model']
  model = models.build(network['name'], num_classes=network['num_classes'], **network['options'])
  abstract = models.abstract_variables(model, (1, *network['input_size'], 1))
  abstract['log_sigma_sq'] = jax.ShapeDtypeStruct((network['num_classes'],), np.float32)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), abstract)
  variables, meta = checkpoint.restore_variables(folder, abstract)
  return jax.device_get(variables), meta


def overlap_of(trained: Trained) -> float:
  """The overlap of neighbouring windows in the evaluation of a run; runs that have no such option used a half."""
  return trained.meta['config']['eval'].get('overlap', 0.5)


def precision_of(meta: dict) -> str:
  """The precision of the products in a run; runs that have no such option used JAX's default."""
  return meta['config'].get('runtime', {}).get('matmul_precision', 'default')
