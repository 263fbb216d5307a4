"""Helpers of the network tests: parameter counts, compilation without optimisation, training mode."""

import jax


def jit(function):
  """jax.jit without optimisation: for networks of the testing size compiling takes most of the time."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


def count(tree) -> int:
  """Number of elements in all leaves of a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def trained(model, variables, image, **rngs):
  """(logits, updated batch_stats) of the forward pass of training."""
  return model.apply(variables, image, train=True, mutable=['batch_stats'], rngs=rngs)
