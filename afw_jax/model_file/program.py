"""The forward pass of a network as a serialised program for every platform (`jax.export`)."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from afw_jax import models
from afw_jax.inference import forward
from afw_jax.inference.network import image_shape, precision_of
from afw_jax.models.layers.attention import plain_attend

PLATFORMS = ('cpu', 'cuda', 'tpu')


def serialised(meta: Mapping) -> bytes:
  """The forward pass of prediction, for `jax.export.deserialize`.

  The program takes (weights {name: array}, raw intensities (B, *S, channels) float32, windows (B, 2) or for several
  channels (B, channels, 2) float32) and gives probabilities (B, *S, C) float32. B is any number, S the size that the
  network was trained on. The names of the weights are those of `flat`.

  Args:
    meta: of a checkpoint.
  """
  network = meta['model']
  attend = {'attend': plain_attend} if models.takes(network['name'], 'attend') else {}  # of this machine otherwise
  model = models.build(network['name'], num_classes=network['num_classes'], **network['options'], **attend)
  _, *size, several = shape = image_shape(meta)
  abstract = models.abstract_variables(model, shape)
  step = models.at_precision(precision_of(dict(meta)), forward.make_predict_step(model))
  (batch,) = export.symbolic_shape('batch')
  arguments = (
    flat(abstract),
    jax.ShapeDtypeStruct((batch, *size, several), jnp.float32),
    jax.ShapeDtypeStruct((batch, 2) if several == 1 else (batch, several, 2), jnp.float32),
  )
  function = lambda weights, image, window: step(nested(weights, abstract), image, window)
  with _without_source_files():
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).serialize())


@contextlib.contextmanager
def _without_source_files() -> Iterator[None]:
  """Leaves out of programs where in which file of this machine each operation was written."""
  before = jax.config.jax_traceback_in_locations_limit
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    yield
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)


def flat(variables: Any) -> dict[str, Any]:
  """Name -> leaf of the variables of a network, such as 'params/encoder/conv/kernel'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
  return {'/'.join(key.key for key in path): leaf for path, leaf in leaves}


def nested(weights: Mapping[str, Any], like: Any) -> Any:
  """The inverse of `flat`: the leaves of `weights` in the tree of `like`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: weights['/'.join(key.key for key in path)], like)
