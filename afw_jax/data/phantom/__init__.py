"""Synthetic abdominal CT scans with eight labelled organs, for demos and tests."""

from afw_jax.data.phantom.anatomy import ORGANS
from afw_jax.data.phantom.make import AXIS_CODES, make_phantom, native_geometry, write_phantoms

__all__ = ['AXIS_CODES', 'ORGANS', 'make_phantom', 'native_geometry', 'write_phantoms']
