"""Recipes: how cross-entropy and a Dice loss are added up, in the paper and in the released code."""

from typing import NamedTuple

from afw_jax.losses.checks import check_choice, check_number
from afw_jax.losses.types import RecipeName, Scalar


class Recipe(NamedTuple):
  """How cross-entropy and (AFW-)Dice are added up, and whether the denominators of Dice are squared."""

  ce_weight: Scalar
  dice_weight: Scalar
  squared: bool


RECIPES: dict[str, Recipe] = {'paper': Recipe(1.0, 1.0, False), 'released': Recipe(0.5, 0.5, True)}


def recipe_of(recipe: RecipeName, ce_weight: Scalar | None, dice_weight: Scalar | None, squared: bool | None) -> Recipe:
  """The named recipe with the values that are given (not None) in place of its own.

  Raises:
    InputError: an unknown recipe, or a weight out of range.
  """
  check_choice('recipe', recipe, RECIPES)
  named = RECIPES[recipe]
  mixture = Recipe(
    named.ce_weight if ce_weight is None else ce_weight,
    named.dice_weight if dice_weight is None else dice_weight,
    named.squared if squared is None else squared,
  )
  check_number('ce_weight', mixture.ce_weight)
  check_number('dice_weight', mixture.dice_weight)
  return mixture
