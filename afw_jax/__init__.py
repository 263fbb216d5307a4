"""afw_jax: abdominal organ segmentation in JAX with the Asymmetric Focal Weighted Dice loss.

`afw_jax.losses` imports jax and numpy only; the other subpackages import their own dependencies. This file imports
nothing.
"""

__version__ = '0.1.0'
