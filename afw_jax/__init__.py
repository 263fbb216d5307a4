"""afw_jax: abdominal organ segmentation in JAX with the Asymmetric Focal Weighted Dice loss.

`afw_jax.losses` needs jax alone; the other rooms import what they name. Nothing heavy is imported here.
"""

__version__ = '0.1.0'
