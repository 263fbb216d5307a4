"""The channels of a scan: CT with PET, or several MR sequences of one patient on one grid.

An array of one channel has no axis for it, (D, H, W); of several the channels are the last axis, (D, H, W, channels).
What belongs to each channel (windows, statistics) is likewise one value, or a list of one for each channel.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from afw_jax.data.sets.spec import DatasetSpec, holds_hu


class Channel(NamedTuple):
  """One channel of the scans of a data set.

  Attributes:
    place: its index in the last axis of the arrays; None where there is one channel.
    name: as dataset.json has it; '' where there is one channel.
    in_hu: whether its intensities are Hounsfield units.
  """

  place: int | None
  name: str
  in_hu: bool

  def of(self, values: Any) -> Any:
    """The value of this channel."""
    return values if self.place is None else values[self.place]

  def voxels(self, array: np.ndarray) -> np.ndarray:
    """(D, H, W) intensities of this channel, a view of the array of a scan."""
    return array if self.place is None else array[..., self.place]

  def said(self, note: str) -> str:
    """A note on this channel that names it."""
    return note if self.place is None else f'channel {self.place} ({self.name}): {note}'


def of(options: Mapping) -> tuple[Channel, ...]:
  """The channels of a data set, by the options of its store, which checkpoints keep.

  Args:
    options: 'modality', 'source', and 'channels' where there are several: (name, 'CT' or 'MR') of each.
  """
  several = options.get('channels') or ()
  if not several:
    return (Channel(None, '', holds_hu(options['modality'], options['source'])),)
  return tuple(Channel(i, name, holds_hu(kind, options['source'])) for i, (name, kind) in enumerate(several))


def of_spec(spec: DatasetSpec) -> tuple[Channel, ...]:
  """The channels of a data set."""
  return of({'modality': spec.modality, 'source': spec.source, 'channels': spec.channels})


def count(options: Mapping) -> int:
  """The number of channels, by the options of a store."""
  return len(options.get('channels') or ()) or 1


def measured(options: Mapping) -> Channel:
  """The channel that the body is found in and that organs are measured in: the first in HU, else the first."""
  found = of(options)
  return next((channel for channel in found if channel.in_hu), found[0])


def joined(values: Sequence) -> Any:
  """The values of all channels as one: the value itself of one channel, a list of several."""
  return values[0] if len(values) == 1 else list(values)


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """The array of a scan from the (D, H, W) arrays of its channels."""
  return arrays[0] if len(arrays) == 1 else np.stack(arrays, -1)


def each(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> np.ndarray:
  """Applies a function of (D, H, W) arrays to each channel of a scan."""
  if array.ndim == 3:
    return function(array)
  return stacked([function(array[..., i]) for i in range(array.shape[-1])])


def shown(image: np.ndarray, window: Sequence) -> tuple[np.ndarray, Sequence[float]]:
  """((D, H, W) intensities, (low, high)) of the channel that pictures show, which is the first."""
  return (image, window) if image.ndim == 3 else (image[..., 0], window[0])
