"""Draws the figures of docs/the-loss.md: the power and its slope, and the pull of each loss on nine classes.

Every value comes from the functions of `afw_jax.losses`. From the root of the repository:

    python docs/figures/the_loss.py
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

from afw_jax.losses.pixels import power, power_slope
from afw_jax.losses.weights import weigh
from afw_jax.report.style import colour, new_figure, save

GAMMAS = {0.25: colour(4), 0.5: colour(1), 1.0: 'black', 2.0: colour(12)}
CROSSING = 0.25 ** (1 / 0.75)  # Dice loss at which the slope of its power 0.25 is 1
# Dice losses in the middle of a training: the background, seven organs that are found, and one that is not.
CLASSES = (0.01, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.7, 1.0)
LOSSES = (  # label, look, exponent of the organs, options of the weights; solved: where learned weights settle
  ('learned, Eq. 6 (the paper)', (colour(4), '-'), 0.25, {'weights': 'solved'}),
  ('learned, Eq. 2', (colour(1), '-'), 0.25, {'weights': 'solved', 'correction': 'eq2'}),
  ('learned, background anchored', (colour(3), '-'), 0.25, {'weights': 'solved', 'background': 'anchored'}),
  (r'equal, $\gamma = 0.25$', (colour(4), '--'), 0.25, {'weights': 'equal'}),
  (r'equal, $\gamma = 1$ (sum of Dice)', ('black', '--'), 1.0, {'weights': 'equal'}),
  (r'equal, $\gamma = 2$', (colour(12), '--'), 2.0, {'weights': 'equal'}),
  (r'entropic, $\gamma = 1$, $\tau = 0.25$', (colour(5), '-'), 1.0, {'weights': 'entropic'}),
)


def exponent(path: str) -> str:
  """The power of the Dice loss and its slope against Dice, for several exponents."""
  figure = new_figure(9.5, 3.8)
  left, right = figure.subplots(1, 2)
  dice_loss = jnp.linspace(1, 0.002, 500)
  for gamma, shade in GAMMAS.items():
    style = {'color': shade, 'linewidth': 2.2, 'label': rf'$\gamma$ = {gamma:g}'}
    left.plot(1 - dice_loss, power(dice_loss, gamma), **style)
    right.plot(1 - dice_loss, power_slope(dice_loss, gamma), **style)
  right.plot(1 - CROSSING, 1, 'o', color='black', markersize=6, zorder=3)
  note = f'$\\gamma$ = 0.25 pulls harder than\nthe plain Dice loss only from\na Dice of {1 - CROSSING:.3f} on'
  right.annotate(note, (1 - CROSSING, 1), (0.3, 4), arrowprops={'arrowstyle': '-', 'color': 'black', 'linewidth': 0.8})
  right.set_yscale('log')
  right.set_ylim(0.02, 30)
  dress(left, r'Value of $L^\gamma$', 'Dice of the class', 'loss')
  dress(right, r'Pull on the class, $\gamma L^{\gamma - 1}$', 'Dice of the class', 'slope')
  left.legend(frameon=False)
  return save(figure, path)


def pulls(path: str) -> str:
  """The pull of each loss on nine classes in the middle of a training, against their Dice losses."""
  figure = new_figure(9.5, 5)
  axes = figure.subplots()
  for i, (label, (shade, dashes), gamma, options) in enumerate(LOSSES):
    on_background, *on_organs = pull(gamma, options)
    axes.plot(CLASSES[1:], on_organs, dashes, color=shade, linewidth=2, marker='o', markersize=4, label=label)
    beside = CLASSES[0] * 1.07 ** (i - len(LOSSES) // 2)  # so that equal values are all seen
    axes.plot(beside, on_background, 'o', color=shade, fillstyle='none' if dashes == '--' else 'full', markersize=6)
  axes.axvspan(0.0065, 0.0145, color='#ececec', zorder=0)
  axes.text(0.05, 80, 'organs', va='top')
  axes.text(0.007, 80, 'background', va='top')
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlim(0.0065, 1.15)
  axes.set_ylim(0.07, 100)
  axes.set_xticks(CLASSES, [f'{loss:g}' for loss in CLASSES])
  axes.minorticks_off()
  dress(
    axes,
    'Pull of the loss on each of nine classes',
    r'Dice loss $L_c$ of the class',
    r'pull, $\partial\,\mathrm{loss} / \partial L_c$',
  )
  axes.legend(frameon=False, loc='center left', bbox_to_anchor=(1.01, 0.5), title='class weights')
  return save(figure, path)


def pull(gamma: float, options: dict) -> jax.Array:
  """(C,) derivative of the weighted loss with respect to the Dice loss of each class of CLASSES."""
  dice, organs = jnp.array(CLASSES), jnp.arange(len(CLASSES)) > 0
  focused = jnp.where(organs, power(dice, gamma), dice)
  defaults = {'background': 'weighted', 'correction': 'eq6', 'tau': 0.25, 'present': True}
  _, weight = weigh(focused, None, **defaults | options)
  return weight * jnp.where(organs, power_slope(dice, gamma), 1)


def dress(axes, title: str, xlabel: str, ylabel: str) -> None:
  axes.set_title(title)
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)


def draw(folder: pathlib.Path) -> list[str]:
  """Draws all figures into a folder and returns their paths."""
  return [exponent(str(folder / 'exponent.png')), pulls(str(folder / 'pulls.png'))]


if __name__ == '__main__':
  print(*draw(pathlib.Path(sys.argv[1] if sys.argv[1:] else pathlib.Path(__file__).parent)), sep='\n')
