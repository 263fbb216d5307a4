"""Segmentation losses in JAX, AFW-Dice among them: pure functions of (logits, labels), importable with jax alone.

>>> import jax, jax.numpy as jnp
>>> from afw_jax import losses
>>> logits = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))        # (B, *S, C), any number of spatial axes
>>> labels = jax.random.randint(jax.random.key(1), (2, 8, 8), 0, 3)    # (B, *S) class ids, 0 the background
>>> s = jnp.zeros(3)                                                   # ln sigma^2 of Eq. 6, trained with the network
>>> loss, grads = jax.jit(jax.value_and_grad(losses.afw_loss, argnums=(0, 2)))(logits, labels, s)
>>> loss.shape, grads[0].shape, grads[1].shape
((), (2, 8, 8, 3), (3,))
>>> loss_fn = losses.make_loss('ce_afw', recipe='released')            # by name, for a training loop
>>> total, terms = jax.jit(loss_fn)(logits, labels, s)
>>> sorted(terms), terms['dice'].shape
(['contribution', 'dice', 'focused', 'weight'], (3,))

Common to all:
- Sums run over the whole batch and all spatial axes. Under jit with sharded arrays that is the global batch by itself;
  inside shard_map, pmap or vmap name the mapped axis with `axis_name=` and the sums are psum-ed before anything
  nonlinear. Gradients taken inside follow lax.psum: exact under shard_map; where each shard differentiates its own copy
  of the loss (pmap, shard_map with check_vma=False) average the parameter gradients with pmean, as usual.
- float32 inside whatever comes in (bfloat16, float16), float64 if the logits are.
- `mask` (B, *S), bool or weights, says what each pixel counts, also in the N of cross-entropy.
- Labels outside [0, C) cannot be an error under jit: such a pixel counts nowhere, as if masked out.
- Finite in value and gradient for absent classes, perfect predictions and saturated softmax.
"""

from afw_jax.losses.afw import afw_dice, afw_dice_terms, afw_loss
from afw_jax.losses.deep import deep_supervised
from afw_jax.losses.named import LOSSES, LossFn, loss_options, make_loss
from afw_jax.losses.terms import cross_entropy, dice_loss, dice_terms, focal_loss, generalised_dice_loss
from afw_jax.losses.tversky import focal_tversky_loss, tversky_loss, unified_focal_loss

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
  'loss_options',
  'make_loss',
  'tversky_loss',
  'unified_focal_loss',
]
