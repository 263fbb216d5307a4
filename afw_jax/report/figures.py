"""Figures of a run: training curves, class weights and pulls, and the focused Dice loss (Figure 2 of the paper)."""

import os
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from afw_jax.losses import afw_dice_terms
from afw_jax.report.style import colour, label, legend_beside, new_figure, save, save_vector

TITLES = {  # of `draw_run`
  'curves': 'Training loss, and DSC of the validation cases',
  'learned_weights': 'Weight of each class in the loss, and the pull of the loss on it',
  'gamma': 'The focused Dice loss',
}
_GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Eight, so that with the thirteen colours of `style` 104 classes have different lines.
_DASHES = (
  '-',
  (0, (5, 1.5)),
  (0, (1.5, 1.2)),
  (0, (6, 1.5, 1.2, 1.5)),
  (0, (9, 2)),
  (0, (3, 1, 1, 1, 1, 1)),
  (0, (9, 2, 3, 2)),
  (0, (1, 3)),
)


def curves(path: str, records: Iterable[dict]) -> str:
  """Draws the training loss, and the validation DSC of each organ, against the step.

  Args:
    path: path of the PNG to write; the same as SVG is written beside it.
    records: of metrics.jsonl; the keys 'step', 'train/loss', 'val/dsc' and 'val/dsc/<organ>' are drawn, None as a gap.

  Returns:
    path.
  """
  records = list(records)
  figure = new_figure(12, 4.6)
  left, right = figure.subplots(1, 2)
  steps, loss = _series(records, 'train/loss')
  left.plot(steps, loss, color='#9db4cf', linewidth=0.8, label='each record')
  if len(loss) >= 20:
    width = max(5, len(loss) // 25)
    mean = np.convolve(loss, np.ones(width) / width, mode='valid')
    left.plot(
      steps[(width - 1) // 2 :][: len(mean)], mean, color='#1f4e8c', linewidth=2, label=f'moving mean of {width}'
    )
    left.legend(frameon=False)
  _dress(left, 'Training loss', 'loss', empty=not len(loss))

  title, prefix = 'Validation DSC', 'val/dsc/'
  organs = _names(records, prefix)
  for i, organ in enumerate(organs):
    steps, dsc = _series(records, prefix + organ)
    right.plot(
      steps, dsc, color=colour(i + 1), linestyle=_dash(i), marker='o', markersize=2.5, linewidth=1.5, label=label(organ)
    )
  steps, dsc = _series(records, 'val/dsc')
  if len(dsc):
    right.plot(steps, dsc, color='black', linewidth=2.6, marker='o', markersize=3.5, label='mean')
    if not np.isnan(dsc).all():
      best = int(np.nanargmax(dsc))
      title += f' (best mean {dsc[best]:.3f}, step {steps[best]})'
    legend_beside(right)
    right.set_ylim(-0.02, 1.05)
  _dress(right, title, 'DSC', empty=not len(dsc))
  return _save(figure, path)


def learned_weights(path: str, records: Iterable[dict]) -> str:
  """Draws the weight of each class in AFW-Dice against the step (paper Eq. 6), and the pull of the loss on the class.

  The pull is the derivative of the loss with respect to the Dice loss of the class, which the weight alone does not
  tell. Runs of versions that did not record it have the weights alone.

  Args:
    path: path of the PNG to write; the same as SVG is written beside it.
    records: of metrics.jsonl; the keys 'step', 'weight/<class>' and 'pull/<class>' are drawn, None as a gap.

  Returns:
    path.
  """
  records = list(records)
  if not _names(records, 'pull/'):
    figure = new_figure(8.6, 4.8)
    _by_class(figure.subplots(), records, 'weight/', 'Class weights', 'weight $w_c$')
    return _save(figure, path)
  figure = new_figure(16, 4.8)
  left, right = figure.subplots(1, 2)
  _by_class(left, records, 'weight/', 'Class weights', 'weight $w_c$')
  _by_class(right, records, 'pull/', 'Pull on each class', r'derivative of the loss by the Dice loss $L_c$')
  return _save(figure, path)


def _save(figure, path: str) -> str:
  """Writes the PNG file `path` and an SVG file beside it."""
  save_vector(figure, f'{os.path.splitext(path)[0]}.svg')
  return save(figure, path)


def _by_class(axes, records: list[dict], prefix: str, title: str, ylabel: str) -> None:
  """One line for each class, with its last value in the legend; logarithmic where small values would be lost."""
  classes = _names(records, prefix)
  organs = [name for name in classes if name != 'background']
  low, high = 1.0, 1.0
  for name in classes:
    steps, value = _series(records, prefix + name)
    i = organs.index(name) if name in organs else -1
    style = {'color': colour(i + 1), 'linestyle': _dash(i) if i >= 0 else (0, (6, 2)), 'linewidth': 1.8}
    known = value[~np.isnan(value)]
    axes.plot(steps, value, label=f'{label(name)} ({_short(known[-1])})' if len(known) else label(name), **style)
    low, high = min(low, np.nanmin(value, initial=1)), max(high, np.nanmax(value, initial=1))
  axes.axhline(1, color='#b0b0b0', linewidth=0.8, zorder=0)
  if classes:
    legend_beside(axes, title='class (last value)')
  if low > 0 and high / low > 20:
    axes.set_yscale('log')
  _dress(axes, title, ylabel, empty=not classes)


def gamma_figure(path: str, *, gammas: Iterable[float] = _GAMMAS) -> str:
  """Draws Figure 2 of the paper: the focused Dice loss (1 - Dice)^gamma against Dice.

  Args:
    path: path of the PNG to write; the same as SVG is written beside it.
    gammas: exponents, one line for each.

  Returns:
    path.
  """
  figure = new_figure(6.4, 4.8)
  axes = figure.subplots()
  for i, gamma in enumerate(gammas):
    dice, loss = focused_loss(gamma)
    axes.plot(dice, loss, color=colour(i + 1), linestyle=_dash(i), linewidth=2.2, label=rf'$\gamma$ = {gamma:g}')
  axes.legend(frameon=False, loc='lower left')
  axes.set_xlim(0, 1.005)
  axes.set_ylim(0, 1.04)
  _dress(axes, r'Focused Dice loss $(1 - \mathrm{Dice})^{\gamma}$', 'loss', xlabel='Dice')
  return _save(figure, path)


def focused_loss(gamma: float) -> tuple[np.ndarray, np.ndarray]:
  """The focused term of `losses.afw_dice_terms` for a class of one pixel whose probability goes from 0 to 1.

  Args:
    gamma: exponent of the focused classes.

  Returns:
    (Dice from 0 to 1, loss), (801,) each.
  """
  dice = np.linspace(0, 1, 801)[1:-1]
  logit = np.concatenate([[-25], np.log(dice / (2 - 2 * dice)), [25]])  # p = sigmoid, Dice = 2 p / (p + 1)
  logits = jnp.stack([jnp.zeros(logit.size), jnp.asarray(logit, jnp.float32)], axis=-1)[:, None, None]
  terms = jax.vmap(lambda x: afw_dice_terms(x, jnp.ones((1, 1), int), None, gamma=gamma))(logits)
  return 1 - np.asarray(terms['dice'][:, 1], np.float64), np.asarray(terms['focused'][:, 1], np.float64)


def draw_run(folder: str, records: list[dict]) -> dict[str, str]:
  """Draws the training curves of a run and, for AFW-Dice, its class weights and Figure 2 of the paper, as PNG and SVG.

  Args:
    folder: where the PNG files go.
    records: of metrics.jsonl; what they do not contain is not drawn.

  Returns:
    name -> path of the figures that were drawn: 'curves', 'learned_weights', 'gamma'.
  """
  paths = {}
  if any('train/loss' in r or 'val/dsc' in r for r in records):
    paths['curves'] = curves(os.path.join(folder, 'curves.png'), records)
  if _names(records, 'weight/'):
    paths['learned_weights'] = learned_weights(os.path.join(folder, 'learned_weights.png'), records)
    paths['gamma'] = gamma_figure(os.path.join(folder, 'gamma.png'))
  return paths


def _series(records: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
  pairs = [(r['step'], np.nan if r[key] is None else r[key]) for r in records if key in r]
  return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], np.float64)


def _names(records: list[dict], prefix: str) -> list[str]:
  """The keys of the records that start with a prefix, without it, in the order of first appearance."""
  return list(dict.fromkeys(key.removeprefix(prefix) for r in records for key in r if key.startswith(prefix)))


def _short(value: float) -> str:
  return f'{value:.2f}' if value == 0 or abs(value) >= 0.1 else f'{value:.1g}'


def _dash(i: int) -> str | tuple:
  return _DASHES[i % len(_DASHES)]


def _dress(axes, title: str, ylabel: str, *, xlabel: str = 'step', empty: bool = False) -> None:
  axes.set_title(title)
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  if empty:
    axes.text(0.5, 0.5, 'nothing recorded', transform=axes.transAxes, ha='center', va='center', color='#808080')
