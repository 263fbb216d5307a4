"""Products of a traced program whose factors an accelerator may round: TPUs to bfloat16, NVIDIA GPUs to TF32."""

from collections.abc import Iterator

import jax
from jax import lax

PRODUCTS = ('dot_general', 'ragged_dot_general', 'conv_general_dilated')


def rounded_products(function, *arguments) -> list[str]:
  """The products of a function, its loops and calls included, that are not computed at the highest precision.

  Args:
    function: to be traced; nothing is computed.
    *arguments: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    Their equations as text; products of integers are exact everywhere and left out.
  """
  return [
    str(equation)
    for equation in _equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    if equation.primitive.name in PRODUCTS
    and equation.outvars[0].aval.dtype.kind not in 'iub'
    and not _is_highest(equation.params['precision'])
  ]


def _is_highest(precision) -> bool:
  return precision is not None and all(p == lax.Precision.HIGHEST for p in precision)


def _equations(jaxpr) -> Iterator:
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
      if _is_program(value):
        yield from _equations(getattr(value, 'jaxpr', value))


def _is_program(value) -> bool:
  return hasattr(getattr(value, 'jaxpr', value), 'eqns')
