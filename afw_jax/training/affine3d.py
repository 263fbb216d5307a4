"""Geometry of 3D augmentation: rotations about the three axes, and resampling of a sample by a linear map."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from afw_jax.training.affine2d import each_channel


def rotation(angles_deg, voxel_aspect: Sequence[float] = (1.0, 1.0, 1.0)):
  """Rotation about the three axes as an output-to-source matrix on (z, y, x) offsets from the centre, in voxels.

  A positive angle turns the plane of the two other axes, in ascending order, the way scipy.ndimage.rotate does with
  axes=(1, 2), (0, 2) or (0, 1). The volume is turned about x first, then y, then z.

  Args:
    angles_deg: (3,) about the axes z, y, x.
    voxel_aspect: lengths of a voxel along (z, y, x), in any unit, so that the body is turned and not sheared.

  Returns:
    (3, 3) float32; the identity, exactly, where all angles are 0.
  """
  matrix = None
  for axis, (first, second) in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2))):
    cos, sin = jnp.cos(jnp.deg2rad(angles_deg[axis])), jnp.sin(jnp.deg2rad(angles_deg[axis]))
    turn = jnp.eye(3).at[first, first].set(cos).at[second, second].set(cos)
    turn = turn.at[first, second].set(sin).at[second, first].set(-sin)
    # Sums of products rather than a dot: accelerators round the factors of a dot.
    matrix = turn if matrix is None else (matrix[:, :, None] * turn[None]).sum(1)
  aspect = np.asarray(voxel_aspect, np.float32)
  return matrix * (aspect / aspect[:, None])  # source voxels = 1/aspect * R * aspect * output voxels


def resample(image, label, matrix):
  """Resamples one sample through a linear map about the centre of the volume: image linear, label nearest.

  Each output voxel is computed from its eight neighbours in one fused loop; beside the result only the padded volume
  is held in memory.

  Args:
    image: (D, H, W, channels) float.
    label: (D, H, W) integer.
    matrix: (3, 3), offset from the centre (z, y, x) of an output voxel -> offset of its source.

  Returns:
    image and label of the same shapes and dtypes, 0 where the source lies outside. Mirrors (a diagonal of +-1) and the
    identity copy every voxel exactly.
  """
  shape = label.shape
  offsets = [
    (jnp.arange(n) - (n - 1) / 2).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape)
  ]
  source = [sum(matrix[i, j] * offsets[j] for j in range(3)) + (n - 1) / 2 for i, n in enumerate(shape)]
  # One voxel of 0 all around and positions held within it replace a test of every neighbour.
  position = [jnp.clip(s + 1, 0, n + 1) for s, n in zip(source, shape)]
  strides = ((shape[1] + 2) * (shape[2] + 2), shape[2] + 2, 1)

  def flat(index):
    return sum(i.astype(jnp.int32) * stride for i, stride in zip(index, strides))

  def pick(padded, index):
    return padded.reshape(-1).at[index].get(mode='promise_in_bounds')

  label = pick(jnp.pad(label, 1), flat([jnp.floor(p + 0.5) for p in position]))
  low = [jnp.minimum(jnp.floor(p), n) for p, n in zip(position, shape)]
  fraction, corner = [p - i for p, i in zip(position, low)], flat(low)

  def linear(padded, axis, index):
    if axis == 3:
      return pick(padded, index)
    step = strides[axis]
    below, above = linear(padded, axis + 1, index), linear(padded, axis + 1, index + step)
    return (1 - fraction[axis]) * below + fraction[axis] * above

  return each_channel(lambda one: linear(jnp.pad(one, 1), 0, corner), image).astype(image.dtype), label


def mirror(image, label, flips):
  """Reverses the axes (z, y, x) of one sample where `flips` (3,) bool is true, without resampling."""
  for axis in range(3):
    image = jnp.where(flips[axis], jnp.flip(image, axis), image)
    label = jnp.where(flips[axis], jnp.flip(label, axis), label)
  return image, label
