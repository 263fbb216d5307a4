"""Imported weights: PyTorch checkpoints of the reference implementations, and published pretrained encoders."""

from afw_jax.weights.convert import from_torch

__all__ = ['from_torch']
