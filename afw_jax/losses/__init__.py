"""Segmentation losses in JAX, AFW-Dice among them: pure functions of (logits, labels) that import jax and numpy only.

>>> import jax, jax.numpy as jnp
>>> from afw_jax import losses
>>> logits = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))        # (B, *S, C), any number of spatial axes
>>> labels = jax.random.randint(jax.random.key(1), (2, 8, 8), 0, 3)    # (B, *S) class ids, 0 the background
>>> s = losses.init_log_sigma_sq(3)                                    # ln sigma^2 of Eq. 6, trained with the network
>>> loss, grads = jax.jit(jax.value_and_grad(losses.afw_loss, argnums=(0, 2)))(logits, labels, s)
>>> loss.shape, grads[0].shape, grads[1].shape
((), (2, 8, 8, 3), (3,))
>>> loss_fn = losses.make_loss('ce_afw', recipe='released')            # by name, for a training loop
>>> total, terms = jax.jit(loss_fn)(logits, labels, s)
>>> sorted(terms), terms['dice'].shape
(['contribution', 'dice', 'focused', 'pull', 'weight'], (3,))

All losses have in common:
- Sums run over the whole batch and all spatial axes. Under jit with sharded arrays that is the global batch without
  further action; inside shard_map, pmap or vmap pass the mapped axis as `axis_name`, and the sums are psum-ed before
  any nonlinear operation. Gradients taken inside follow lax.psum: they are exact under shard_map; where each shard
  differentiates its own copy of the loss (pmap, shard_map with check_vma=False) average the parameter gradients with
  pmean, as usual.
- Computation is in float32 for any 16-bit or 32-bit logits, and in float64 if the logits are.
- `mask` (B, *S), bool or weights, is the weight of each pixel, also in the N of cross-entropy.
- Pixels with labels outside [0, C) are ignored, as if masked out: values cannot raise an error under jit.
- Value and gradient are finite for absent classes, perfect predictions and saturated softmax.

"The paper" is Guo Y., Lin J., Pan J., Jiang T., Intelligent Computer and Applications 14(7):20-28, 2024,
doi 10.20169/j.issn.2095-2163.240703; its equations are in `afw_jax.losses.afw`.
"""

from afw_jax.losses.afw import afw_dice, afw_dice_terms, afw_loss, init_log_sigma_sq
from afw_jax.losses.deep import deep_supervised
from afw_jax.losses.named import LOSSES, loss_options, make_loss
from afw_jax.losses.terms import cross_entropy, dice_loss, dice_terms, focal_loss, generalised_dice_loss
from afw_jax.losses.tversky import focal_tversky_loss, tversky_loss, unified_focal_loss
from afw_jax.losses.types import LossFn

__all__ = [
  'LOSSES',
  'LossFn',
  'afw_dice',
  'afw_dice_terms',
  'afw_loss',
  'cross_entropy',
  'deep_supervised',
  'dice_loss',
  'dice_terms',
  'focal_loss',
  'focal_tversky_loss',
  'generalised_dice_loss',
  'init_log_sigma_sq',
  'loss_options',
  'make_loss',
  'tversky_loss',
  'unified_focal_loss',
]
