"""The network of a trained run, with what its checkpoint says about it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from afw_jax.data.sets import channels
from afw_jax.data.sets.channels import Channel
from afw_jax.inference import forward


@dataclasses.dataclass(frozen=True)
class Trained:
  """The network of a trained run, with everything that is needed to segment a scan.

  Attributes:
    predict_step: jitted, (variables, raw image (B, *S, channels), window) -> probabilities (B, *S, C); see `forward`.
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

  @property
  def channels(self) -> tuple[Channel, ...]:
    """The channels of the scans that it takes."""
    return channels.of(self.meta['data']['options'])

  def file_ids(self, labels: np.ndarray) -> np.ndarray:
    """Class ids -> the ids in the label files of the data set; uint8 of the same shape, uint16 if one exceeds 255."""
    ids = [0, *(self.meta['data']['output_ids'][organ] for organ in self.organs)]
    return np.array(ids, np.min_scalar_type(max(ids)))[labels]


def image_shape(meta: Mapping) -> tuple[int, ...]:
  """(1, *S, channels), the shape of one sample of a network, by the meta of its checkpoint."""
  return 1, *meta['model']['input_size'], channels.count(meta['data']['options'])


def overlap_of(trained: Trained) -> float:
  """The overlap of neighbouring windows in the evaluation of a run; runs that have no such option used a half."""
  return trained.meta['config']['eval'].get('overlap', 0.5)


def precision_of(meta: dict) -> str:
  """The precision of the products in a run; runs that have no such option used JAX's default."""
  return meta['config'].get('runtime', {}).get('matmul_precision', 'default')
