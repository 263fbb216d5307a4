"""Fingerprints of arrays: a checksum of every bit, computed on the device, the same under every sharding."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any
_UINT = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def fingerprint(tree: PyTree) -> dict[str, int]:
  """Path of each leaf -> its fingerprint, a uint32; each process computes it from its own copy."""
  tree = jax.tree.map(lambda a: a if a.is_fully_addressable else a.addressable_data(0), tree)
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(_fingerprints(tree)))
  return {jax.tree_util.keystr(path): int(value) for path, value in leaves}


def _of_leaf(a: jax.Array) -> jax.Array:
  """The sum of all bits modulo 2^32, with odd weights that depend on the index: it does not depend on the sharding."""
  a = a.astype(jnp.uint8) if a.dtype == jnp.bool_ else a
  bits = lax.bitcast_convert_type(a, _UINT[a.dtype.itemsize]).astype(jnp.uint32)
  weight = jnp.ones_like(bits)
  for axis in range(bits.ndim):
    odd_step = (2654435761 * 2 + 2 * axis) & 0xFFFFFFFE
    weight *= lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(odd_step) + jnp.uint32(1)
  return jnp.sum(bits * weight, dtype=jnp.uint32)


_fingerprints = jax.jit(lambda tree: jax.tree.map(_of_leaf, tree))
