"""Efficient paired attention (EPA), the transformer block of UNETR++: channel attention and spatial attention.

Both share queries and keys and are linear in the number of tokens: channels attend to channels, and every token attends
to a few learned mixtures of all tokens.

References:
  Shaker A. et al. 2022. UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation. arXiv:2212.04497.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from afw_jax.models.layers.conv import Conv, Linear
from afw_jax.models.layers.norm import LayerNorm
from afw_jax.models.layers.options import identity, logits_dtype
from afw_jax.models.layers.residual import ResBlock

LAYOUTS = ('released', 'fixed')


class EPA(nn.Module):
  """Efficient paired attention over tokens (B, N, C) -> (B, N, C); see `EPABlock` for the arguments.

  The two values and the projected keys are linear in the tokens, so that the smaller matrix can be applied first: the
  projection N -> P to the tokens instead of keys and values, the channel attention to the weights instead of values.
  """

  projected: int
  layout: str = 'released'
  heads: int = 4
  dropout: float = 0.15
  kernel_init: Callable | None = None
  bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32
  constrain: Callable = identity

  @nn.compact
  def __call__(self, x, train: bool = False):
    batch, tokens, width = x.shape
    wide = logits_dtype(self.dtype)  # of the attention weights and of the norms
    inits = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init, 'dtype': self.dtype}
    drop = nn.Dropout(self.dropout, deterministic=not train)
    by_head = (*x.shape[:-1], self.heads, width // self.heads)
    x = x.astype(self.dtype)

    kernel, _ = Linear(4 * width, use_bias=False, **inits, name='qkvv').weights(width)
    kernel = kernel.astype(self.dtype)
    query, key = (part.reshape(by_head) for part in jnp.split(x @ kernel[:, : 2 * width], 2, axis=-1))
    _, key_kernel, channel_kernel, spatial_kernel = jnp.moveaxis(kernel.reshape(width, 4, *by_head[2:]), 1, 0)
    query_scale, key_scale = _inverse_norm(query, wide), _inverse_norm(key, wide)  # (B, heads, d)

    temperature = self.param('temperature', nn.initializers.ones, (self.heads, 1, 1), jnp.float32)
    logits = jnp.einsum('bnhd,bnhe->bhde', query, key, preferred_element_type=wide)
    logits = logits * query_scale[..., None] * key_scale[..., None, :] * temperature
    among_channels = drop(nn.softmax(logits)).astype(self.dtype)
    mixed_kernel = jnp.einsum('che,bhde->bchd', channel_kernel, among_channels).reshape(batch, width, width)
    channel = jnp.einsum('bnc,bcf->bnf', x, mixed_kernel)

    # One layer for keys and values, which the released code calls E and F.
    projection, bias = Linear(self.projected, **inits, name='project').weights(tokens)
    mixtures = jnp.einsum('bnc,np->bpc', x, projection.astype(self.dtype))
    keys, values = (
      jnp.einsum('bpc,chd->bhpd', mixtures, kernel, preferred_element_type=wide) + bias[:, None]
      for kernel in (key_kernel, spatial_kernel)
    )
    temperature = self.param('temperature2', nn.initializers.ones, (self.heads, 1, 1), jnp.float32)
    keys = (keys * query_scale[..., None, :] * temperature).astype(self.dtype)
    # (p, d) and not (d, p): jaxlib 0.10's CPU refuses products of bf16 into float32 whose left side is transposed.
    logits = jnp.einsum('bhpd,bnhd->bhpn', keys, query, preferred_element_type=wide)
    # Softmax over the mixtures, normalised after the product: one pass less over the largest array, in both directions.
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(2, keepdims=True)))
    total = weights.sum(2, keepdims=True)
    spatial = jnp.einsum(
      'bhpd,bhpn->bhdn', values.astype(self.dtype), drop(weights).astype(self.dtype), preferred_element_type=wide
    )
    spatial = self.constrain((spatial / total).astype(self.dtype).transpose(0, 3, 1, 2).reshape(x.shape))
    if self.layout == 'released':  # (d, head, token) as it lies in memory is read as (token, channel)
      spatial = spatial.reshape(by_head).transpose(0, 3, 2, 1).reshape(x.shape)
    halves = (('out_proj', spatial), ('out_proj2', channel))
    return jnp.concatenate([Linear(width // 2, **inits, name=name)(half) for name, half in halves], axis=-1)


def _inverse_norm(x, dtype):
  """1 / max(norm along the tokens, 1e-12) of (B, N, heads, d), with a finite gradient for a norm of zero."""
  return lax.rsqrt(jnp.maximum(jnp.square(x.astype(dtype)).sum(1), 1e-24))


class EPABlock(nn.Module):
  """EPA and a convolutional ResBlock over features (B, D, H, W, C), each with a shortcut; for a fixed number of voxels.

  Args:
    projected: number P of learned mixtures of tokens.
    layout: 'released' (needed for the published weights), where a reshape mixes the token and channel axes of the
      spatial attention, or 'fixed'.
    heads: attention heads.
    dropout: dropout rate of attention weights in training.
    channel_dropout: dropout rate of channels after the ResBlock in training.
    kernel_init, bias_init: initialisers of the linear layers; None is PyTorch's default.
    dtype: compute dtype; parameters, statistics and attention weights are float32.
    constrain: function applied to the tokens, inside the attention and after it, for sharding in space.
  """

  projected: int
  layout: str = 'released'
  heads: int = 4
  dropout: float = 0.15
  channel_dropout: float = 0.1
  kernel_init: Callable | None = None
  bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32
  constrain: Callable = identity

  @nn.compact
  def __call__(self, x, train: bool = False):
    width = x.shape[-1]
    tokens = x.reshape(x.shape[0], -1, width)
    positions = self.param('pos_embed', nn.initializers.zeros, (1, *tokens.shape[1:]), jnp.float32)
    tokens = tokens + positions.astype(self.dtype)
    attended = EPA(
      self.projected,
      self.layout,
      self.heads,
      self.dropout,
      self.kernel_init,
      self.bias_init,
      self.dtype,
      self.constrain,
      name='epa_block',
    )(LayerNorm(name='norm')(tokens), train)
    gamma = self.param('gamma', nn.initializers.constant(1e-6), (width,), jnp.float32)
    x = self.constrain(tokens + gamma.astype(self.dtype) * attended).reshape(x.shape)
    y = ResBlock(width, 'batch', dtype=self.dtype, name='conv51')(x, train)
    y = nn.Dropout(self.channel_dropout, broadcast_dims=(1, 2, 3), deterministic=not train)(y)
    return x + Conv(width, 1, dtype=self.dtype, name='conv8')(y)
