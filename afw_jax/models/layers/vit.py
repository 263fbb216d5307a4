"""The pre-norm transformer block of the vision transformers."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from afw_jax.models.layers.attention import attend
from afw_jax.models.layers.conv import Linear
from afw_jax.models.layers.norm import LayerNorm
from afw_jax.models.layers.options import logits_dtype


class SelfAttention(nn.Module):
  """Multi-head self-attention with a linear output layer `out_proj`; the arguments are those of `Block`."""

  heads: int
  fused: bool = True
  qkv_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  divided: bool = False

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
    if train and self.attention_dropout:  # the fused kernels do not drop
      logits = (
        jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=logits_dtype(self.dtype)) * heads[-1] ** -0.5
      )
      weights = nn.Dropout(self.attention_dropout, deterministic=False)(jax.nn.softmax(logits)).astype(value.dtype)
      x = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    else:
      x = attend(query, key, value, divided=self.divided)
    x = Linear(features, dtype=self.dtype, name='out_proj')(x.reshape(*x.shape[:2], features))
    return nn.Dropout(self.dropout, deterministic=not train)(x)


class Mlp(nn.Module):
  """Linear, GELU (erf), linear; the arguments are those of `Block`."""

  hidden: int
  dropout: float = 0.0
  kernel_init: Callable | None = None
  bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False):
    for name, features in (('linear1', self.hidden), ('linear2', x.shape[-1])):
      x = Linear(features, kernel_init=self.kernel_init, bias_init=self.bias_init, dtype=self.dtype, name=name)(x)
      x = nn.gelu(x, approximate=False) if name == 'linear1' else x
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return x


class Block(nn.Module):
  """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)).

  Args:
    heads: attention heads; they divide the channels.
    mlp_features: channels between the two layers of the MLP.
    eps: of both LayerNorms.
    fused: query, key and value in one linear layer `qkv` (in this order), or in three of these names.
    qkv_bias: whether these have a bias.
    dropout: rate after the attention's output layer and after both layers of the MLP.
    attention_dropout: rate on the attention weights.
    mlp_kernel_init, mlp_bias_init: initialisers of the MLP; None is PyTorch's default.
    dtype: compute dtype.
    divided: whether the tokens of a sample may lie on several devices.
  """

  heads: int
  mlp_features: int
  eps: float = 1e-5
  fused: bool = True
  qkv_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  mlp_kernel_init: Callable | None = None
  mlp_bias_init: Callable | None = None
  dtype: jnp.dtype = jnp.float32
  divided: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False):
    """x (B, N, C) -> (B, N, C)."""
    attention = SelfAttention(
      self.heads, self.fused, self.qkv_bias, self.dropout, self.attention_dropout, self.dtype, self.divided, name='attn'
    )
    mlp = Mlp(self.mlp_features, self.dropout, self.mlp_kernel_init, self.mlp_bias_init, self.dtype, name='mlp')
    x = x + attention(LayerNorm(self.eps, name='norm1')(x), train)
    return x + mlp(LayerNorm(self.eps, name='norm2')(x), train)
