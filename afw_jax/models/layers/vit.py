"""Transformer block of the vision transformers: LayerNorm, self-attention, LayerNorm, MLP.

References:
  Dosovitskiy A. et al. 2021. An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale.
    arXiv:2010.11929.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from afw_jax.models.layers.attention import attend
from afw_jax.models.layers.conv import Linear
from afw_jax.models.layers.materialized import materialized
from afw_jax.models.layers.norm import LayerNorm
from afw_jax.models.layers.options import logits_dtype


class SelfAttention(nn.Module):
  """Multi-head self-attention with the linear output layer `out_proj`: (B, N, C) -> (B, N, C).

  Args:
    heads: attention heads; they divide the channels.
    fused: query, key and value in one linear layer `qkv` (in this order), or in three layers of these names.
    qkv_bias: whether these have a bias.
    dropout: rate after the output layer.
    attention_dropout: rate on the attention weights.
    dtype: compute dtype.
    divided: whether the tokens of a sample may lie on several devices.
    attend: computes the attention, as `layers.attention.attend`.
  """

  heads: int
  fused: bool = True
  qkv_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  divided: bool = False
  attend: Callable = attend

  @nn.compact
  def __call__(self, x, train: bool = False):
    features = x.shape[-1]
    heads = (*x.shape[:2], self.heads, features // self.heads)
    if self.fused:
      qkv = Linear(3 * features, use_bias=self.qkv_bias, dtype=self.dtype, name='qkv')(x)
      query, key, value = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
    else:
      query, key, value = (
        Linear(features, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x).reshape(heads)
        for name in ('query', 'key', 'value')
      )
    if train and self.attention_dropout:  # the fused kernels do not support dropout
      logits = (
        jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=logits_dtype(self.dtype)) * heads[-1] ** -0.5
      )
      weights = nn.Dropout(self.attention_dropout, deterministic=False)(jax.nn.softmax(logits)).astype(value.dtype)
      x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    else:
      x = self.attend(query, key, value, divided=self.divided)
    x = Linear(features, dtype=self.dtype, name='out_proj')(x.reshape(*x.shape[:2], features))
    return nn.Dropout(self.dropout, deterministic=not train)(x)


class Names(NamedTuple):
  """Names of the layers of a `Block` in the tree of variables, which are those of the published weights.

  With mlp=None the two linear layers are children of the block itself and not of a module of that name.
  """

  norm1: str = 'norm1'
  norm2: str = 'norm2'
  mlp: str | None = 'mlp'
  linear1: str = 'linear1'
  linear2: str = 'linear2'


class Nested(nn.Module):
  """Applies a function and places the layers that it creates under this module in the tree of variables."""

  function: Callable

  @nn.compact
  def __call__(self, x):
    return self.function(x)


class Block(nn.Module):
  """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)).

  Args:
    heads, fused, qkv_bias, attention_dropout, dtype, divided, attend: as in `SelfAttention`.
    mlp_features: channels between the two linear layers of the MLP.
    eps: of both LayerNorms.
    dropout: rate after both linear layers of the MLP.
    output_dropout: rate after the output layer of the attention; None is `dropout`.
    approximate_gelu: GELU by tanh instead of the error function.
    mlp_kernel_init, mlp_bias_init: initialisers of the MLP; None is PyTorch's default.
    names: names of the layers.
  """

  heads: int
  mlp_features: int
  eps: float = 1e-5
  fused: bool = True
  qkv_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  output_dropout: float | None = None
  approximate_gelu: bool = False
  mlp_kernel_init: Callable | None = None
  mlp_bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32
  divided: bool = False
  attend: Callable = attend
  names: Names = Names()

  @nn.compact
  def __call__(self, x, train: bool = False):
    """x (B, N, C) -> (B, N, C)."""
    names, channels = self.names, x.shape[-1]
    attention = SelfAttention(
      self.heads,
      self.fused,
      self.qkv_bias,
      self.dropout if self.output_dropout is None else self.output_dropout,
      self.attention_dropout,
      self.dtype,
      self.divided,
      self.attend,
      name='attn',
    )

    def mlp(y):
      for name, features in ((names.linear1, self.mlp_features), (names.linear2, channels)):
        inits = {'kernel_init': self.mlp_kernel_init, 'bias_init': self.mlp_bias_init}
        y = Linear(features, **inits, dtype=self.dtype, name=name)(y)
        y = nn.gelu(y, approximate=self.approximate_gelu) if name == names.linear1 else y
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
      return y

    x = materialized(x + attention(LayerNorm(self.eps, name=names.norm1)(x), train))
    y = LayerNorm(self.eps, name=names.norm2)(x)
    return materialized(x + (Nested(mlp, name=names.mlp) if names.mlp else mlp)(y))
