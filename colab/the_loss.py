# %% [markdown]
# # The AFW-Dice loss, by hand
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/)
#
# **Time:** about a minute on two CPU cores, without the installation. **Licence:** Apache-2.0.
#
# This notebook computes the *Asymmetric Focal Weighted Dice loss* of [Guo et al.
# 2024](https://doi.org/10.20169/j.issn.2095-2163.240703) on ten pixels, step by step in NumPy, and compares it with
# `afw_jax.losses`. Then it checks the gradient, draws Figure 2 of the paper, looks at what the learned class weights
# do, and trains a small network with the loss in Flax Linen, Flax NNX and plain JAX.
#
# All options of the loss, and the algebra, are in [docs/the-loss.md](../docs/the-loss.md).

# %% [markdown]
# ## Installation
#
# The first cell installs `afw_jax` for the accelerator of this machine; the second checks that JAX uses it. On Colab,
# choose the accelerator before (*Runtime > Change runtime type*). Colab brings its own, older JAX with a plugin for
# its GPU. The two must be replaced together, which the extra `[cuda]` does (for TPUs `[tpu]`); otherwise JAX would
# fall back to the CPU. Where packages were loaded before they were replaced, the second cell asks for a restart.

# %%
# @title Install
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

REPOSITORY = ''  # address of the Git repository: needed where this notebook is opened outside a clone
SMALL = 'AFW_JAX_SMALL' in os.environ  # tiny sizes, with which the tests run this notebook

ACCELERATOR = 'cpu'
if os.environ.get('JAX_PLATFORMS') != 'cpu':  # unless the CPU is asked for
  if glob.glob('/dev/nvidia[0-9]*'):
    ACCELERATOR = 'gpu'
  elif glob.glob('/dev/accel[0-9]*') or 'TPU_ACCELERATOR_TYPE' in os.environ:
    ACCELERATOR = 'tpu'
EXTRAS = {'cpu': 'viz', 'gpu': 'cuda,viz', 'tpu': 'tpu,viz'}[ACCELERATOR]

if importlib.util.find_spec('afw_jax') is None:
  clone = pathlib.Path.cwd().parent
  if (clone / 'afw_jax' / '__init__.py').exists():
    source = ['--editable', f'{clone}[{EXTRAS}]']
    sys.path.append(str(clone))
  else:
    assert REPOSITORY, 'Set REPOSITORY above to the address of the repository from which this notebook comes.'
    source = [f'afw_jax[{EXTRAS}] @ git+{REPOSITORY}']
  done = subprocess.run([sys.executable, '-m', 'pip', 'install', *source], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
print(f'afw_jax is installed; this machine computes on: {ACCELERATOR}')

# %%
# @title Check
PROBE = 'import afw_jax, jax; print(jax.default_backend(), jax.device_count(), jax.devices()[0].device_kind, sep="|")'
done = subprocess.run([sys.executable, '-c', PROBE], capture_output=True, text=True)
assert done.returncode == 0, done.stderr
backend, count, kind = done.stdout.strip().splitlines()[-1].split('|')
assert backend == ACCELERATOR, (
  f'This machine has a {ACCELERATOR}, but JAX computes on the {backend}. Install the packages of JAX for it: '
  f'pip install "afw_jax[{EXTRAS}] @ git+ADDRESS" (in a clone: pip install ".[{EXTRAS}]"), or set JAX_PLATFORMS=cpu.'
)
old = [
  name
  for name in ('numpy', 'scipy', 'jax', 'flax', 'matplotlib')
  if name in sys.modules and sys.modules[name].__version__ != importlib.metadata.version(name)
]
assert not old, (
  f'This notebook still holds other versions of {", ".join(old)} than those that were just installed. Restart it '
  '(Runtime > Restart session) and run all cells again; nothing is installed a second time.'
)
print(f'JAX {importlib.metadata.version("jax")} computes on {count} x {kind} ({backend})')
# %% [markdown]
# ## Ten pixels
#
# Ten pixels of a CT slice: six of the background, three of the liver, one of the gallbladder. A network has given each
# pixel a *logit* for each class. Their softmax is the probability $p_{ic}$ of class $c$ in pixel $i$; $g_{ic}$ is 1
# for the true class and 0 for the others.

# %%
import matplotlib.pyplot as plt
import numpy as np

plt.rcParams['figure.dpi'] = 80
CLASSES = ('background', 'liver', 'gallbladder')
COLOURS = ('#808080', '#df9f00', '#8020ff')

labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 0, 0])
logits = np.array([
  [4.0, 3.5, 3.0, 0.5, 0.0, 0.5, 0.8, 1.0, 2.5, 3.0],
  [0.0, 0.5, 1.0, 1.5, 3.0, 2.5, 1.0, 1.2, 0.0, 0.0],
  [0.0, 0.0, 0.0, 0.2, 0.0, 0.3, 0.6, 0.4, 0.5, 0.0],
]).T  # fmt: skip

p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)  # (10, 3)
g = np.eye(3)[labels]  # (10, 3)

figure, axes = plt.subplots(figsize=(8, 2.6), layout='constrained')
bottom = np.zeros(10)
for c, (name, colour) in enumerate(zip(CLASSES, COLOURS)):
  axes.bar(range(10), p[:, c], bottom=bottom, color=colour, width=0.85, label=name)
  axes.scatter(np.flatnonzero(labels == c), np.full((labels == c).sum(), 1.1), color=colour, marker='s', s=110)
  bottom += p[:, c]
axes.text(-0.9, 1.1, 'truth', ha='right', va='center')
axes.set(xlabel='pixel', ylabel='probability', xticks=range(10), xlim=(-0.7, 9.7), ylim=(0, 1.2), yticks=(0, 0.5, 1))
axes.spines[['top', 'right']].set_visible(False)
axes.legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The network takes pixel 3 (background) and pixel 7 (the gallbladder) for liver, and is unsure about pixel 6.
#
# ### The loss in NumPy
#
# The **cross-entropy** (Eq. 3) is the mean of $-\ln p$ of the true class. The **Dice loss** of each class (Eq. 4)
# compares areas, so that it does not depend on how many pixels a class has:
#
# $$L_c = 1 - \frac{2 \sum_i p_{ic}\, g_{ic} + \varepsilon}{\sum_i (p_{ic} + g_{ic}) + \varepsilon}.$$
#
# **AFW-Dice** (Eq. 5 and 6) raises the Dice losses of the organs to the power $\gamma = 0.25$, gives each class a
# weight $w_c = 1 / \sigma_c^2 = e^{-s_c}$, in which the $s_c$ are *learned*, and adds a correction, without which all
# weights would shrink to 0. The whole loss (Eq. 7) is the sum of both.

# %%
EPSILON, GAMMA = 1e-5, 0.25
s = np.array([0.3, -0.2, 0.1])  # ln sigma_c^2; a training starts at 0

cross_entropy = -np.log(p[np.arange(10), labels]).mean()
dice = 1 - (2 * (p * g).sum(0) + EPSILON) / ((p + g).sum(0) + EPSILON)  # (3,)
focused = np.where([False, True, True], dice**GAMMA, dice)  # the background keeps the exponent 1
weight = np.exp(-s)
correction = np.log(np.exp(s).prod() + 1)
by_hand = cross_entropy + (weight * focused).sum() + correction

print(f'{"":12}{"L_c":>8}{"focused":>10}{"weight":>9}{"product":>10}')
for c, name in enumerate(CLASSES):
  print(f'{name:12}{dice[c]:8.4f}{focused[c]:10.4f}{weight[c]:9.4f}{weight[c] * focused[c]:10.4f}')
print(f'\ncross-entropy {cross_entropy:.6f} + weighted {(weight * focused).sum():.6f} + correction {correction:.6f}')
print(f'= {by_hand:.6f}')

# %% [markdown]
# The same from the library: `logits` of shape (batch, \*space, classes), integer `labels` of shape (batch, \*space).

# %%
import jax
import jax.numpy as jnp

from afw_jax import losses

by_library = jax.jit(losses.afw_loss)(logits[None], labels[None], s)
terms = jax.jit(losses.afw_dice_terms)(logits[None], labels[None], s)
print(f'NumPy {by_hand:.6f}, afw_jax {by_library:.6f}')
np.testing.assert_allclose(by_library, by_hand, rtol=1e-5)
np.testing.assert_allclose(terms['dice'], dice, rtol=1e-5)

# %% [markdown]
# ## The gradient
#
# `jax.grad` differentiates the loss by the logits and by the $s_c$. A derivative can be checked by *finite
# differences*: move one number a little up and a little down, and divide the change of the loss by the distance. In
# float32 rounding hides much of that change, so this is done in float64, on the CPU.

# %%
from jax.test_util import check_grads

loss_of = jax.jit(lambda logits, s: losses.afw_loss(logits[None], labels[None], s))
with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
  arguments = [jnp.asarray(logits, jnp.float64), jnp.asarray(s, jnp.float64)]
  by_logits, by_s = map(np.asarray, jax.jit(jax.grad(loss_of, argnums=(0, 1)))(*arguments))
  step, both_sides = 1e-6, jax.jit(jax.vmap(loss_of, in_axes=(0, None)))
  moves = step * np.eye(30).reshape(30, 10, 3)
  up, down = both_sides(logits + moves, arguments[1]), both_sides(logits - moves, arguments[1])
  difference = np.asarray((up - down) / (2 * step)).reshape(10, 3)
  check_grads(loss_of, arguments, order=1, modes=('fwd', 'rev'), atol=1e-6, rtol=1e-6)
worst = np.abs(difference - by_logits).max()
print(f'largest distance between jax.grad and finite differences: {worst:.1e}')
print('check_grads: forward and reverse mode agree with finite differences')
assert worst < 1e-8 and by_logits.dtype == by_s.dtype == np.float64

figure, axes = plt.subplots(figsize=(8, 1.9), layout='constrained')
limit = np.abs(by_logits).max()
picture = axes.imshow(-by_logits.T, cmap='PuOr_r', vmin=-limit, vmax=limit, aspect='auto')
for i, c in enumerate(labels):
  axes.add_patch(plt.Rectangle((i - 0.48, c - 0.46), 0.96, 0.92, fill=False, edgecolor='black', linewidth=1.6))
axes.set(xticks=range(10), yticks=range(3), yticklabels=CLASSES, xlabel='pixel')
axes.set_title('Where a gradient step pushes the logits (framed: the true class)', fontsize=10)
figure.colorbar(picture, ax=axes, label='-gradient')
plt.show()

# %% [markdown]
# The push is strongest on the gallbladder's one pixel. The gradient also stays finite where the power $L^{0.25}$ has
# an infinite slope: for a class that is perfect, or absent from the batch.

# %%
nothing, certain = jnp.zeros((1, 4, 4), int), 100.0 * jax.nn.one_hot(jnp.zeros((1, 4, 4), int), 3)
# No organ in the labels, and none predicted:
value, slope = jax.jit(jax.value_and_grad(losses.afw_loss))(certain, nothing, jnp.zeros(3))
print(f'value {value:.4f}, all slopes finite: {bool(jnp.isfinite(slope).all())}')
assert jnp.isfinite(value) and jnp.isfinite(slope).all()

# %% [markdown]
# ## Figure 2: the exponent
#
# The paper raises the loss of an organ to a power below 1, which lifts its *value* everywhere (left). What a training
# feels is the *slope* (right), and there it looks different: with $\gamma = 0.25$ an organ that is not found at all
# (Dice 0) is pulled with a quarter of the strength of the plain Dice loss. The pull exceeds that of the plain loss
# only from a Dice of 0.843 on.

# %%
loss_values = np.geomspace(1e-6, 1, 400)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout='constrained')
for gamma, colour in ((0.25, '#bf4060'), (0.5, '#df9f00'), (1.0, 'black'), (2.0, '#008020')):
  slope_of = jax.jit(jax.vmap(jax.grad(lambda loss, gamma=gamma: loss**gamma)))(loss_values)
  left.plot(1 - loss_values, loss_values**gamma, color=colour, linewidth=2, label=rf'$\gamma$ = {gamma:g}')
  right.plot(1 - loss_values, slope_of, color=colour, linewidth=2)
crossing = 0.25 ** (1 / 0.75)
right.plot(1 - crossing, 1, 'o', color='black')
right.annotate(f'Dice {1 - crossing:.3f}', (1 - crossing, 1), (0.55, 4), arrowprops={'arrowstyle': '-'})
right.set(yscale='log', ylim=(0.02, 30), xlabel='Dice of the organ', title=r'Slope $\gamma L^{\gamma - 1}$: the pull')
left.set(xlabel='Dice of the organ', title=r'Value $L^\gamma$ (Figure 2)')
left.legend(frameon=False)
for axes in (left, right):
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
plt.show()

# %% [markdown]
# ## What the learned weights do
#
# Take a moment in the middle of a training: the background is almost perfect, one organ is good, one is poor, one is
# hardly found. Let gradient descent learn the $s_c$ while these losses stay as they are.

# %%
NAMES = ('background', 'liver', 'pancreas', 'gallbladder')
SHADES = ('#808080', '#df9f00', '#4060bf', '#8020ff')
class_losses = jnp.array([0.02, 0.1, 0.3, 0.9])
gammas = jnp.array([1.0, 0.25, 0.25, 0.25])
focused = class_losses**gammas


def eq6(s):
  return (jnp.exp(-s) * focused).sum() + jax.nn.softplus(s.sum())


def descend(s, _):
  return s - 0.1 * jax.grad(eq6)(s), jnp.exp(-s)


s, history = jax.lax.scan(descend, jnp.zeros(4), length=600)
balance = jnp.exp(-s) * focused  # what each class contributes in the end
pull = jnp.exp(-s) * gammas * class_losses ** (gammas - 1)  # derivative of the loss by L_c

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout='constrained')
for c, (name, shade) in enumerate(zip(NAMES, SHADES)):
  left.plot(history[:, c], color=shade, linewidth=2, label=f'{name}, L = {class_losses[c]:g}')
left.set(yscale='log', xlabel='step', title='weight of each class')
left.legend(frameon=False, fontsize=8)
right.bar(NAMES, pull, color=SHADES)
right.set(yscale='log', title='pull of the loss on each class, at the end')
for axes in (left, right):
  axes.spines[['top', 'right']].set_visible(False)
plt.show()
print('contributions w_c L_c^gamma:', np.round(balance, 4))
assert jnp.ptp(balance) < 1e-3 and jnp.argmin(pull) == 3 and jnp.argmax(pull) == 0

# %% [markdown]
# All classes end with the same contribution: the weight of a class is *inversely* proportional to its term
# $L_c^{\gamma_c}$, and the pull on it to $L_c$ itself. **The class that is found worst is pulled least**, which is not
# what one would expect of a loss for rare organs. The cross-entropy still pulls on every class, so that small organs
# are learned too, but late. The option `weights` has other choices, and the terms of the loss report the pull of each:

# %%
OPTIONS = {
  'learned, in balance (Eq. 6)': {'weights': 'solved'},
  'learned, in balance (Eq. 2)': {'weights': 'solved', 'correction': 'eq2'},
  'equal': {'weights': 'equal'},
  'equal, exponent 2': {'weights': 'equal', 'gamma': 2.0},
  'entropic, exponent 1': {'weights': 'entropic', 'gamma': 1.0},
}
pulls = {}
for name, given in OPTIONS.items():
  terms_of = jax.jit(lambda logits, labels, given=given: losses.afw_dice_terms(logits, labels, None, **given))
  pulls[name] = terms_of(logits[None], labels[None])['pull']

figure, axes = plt.subplots(figsize=(8, 2.8), layout='constrained')
for c, (name, colour) in enumerate(zip(CLASSES, COLOURS)):
  values = [float(value[c]) for value in pulls.values()]
  axes.barh(np.arange(len(pulls)) + 0.27 * (c - 1), values, 0.25, color=colour, label=f'{name}, L = {dice[c]:.2f}')
axes.set(yticks=range(len(pulls)), yticklabels=pulls, xlabel='pull on each class, for the ten pixels above')
axes.invert_yaxis()
axes.spines[['top', 'right']].set_visible(False)
axes.legend(frameon=False)
plt.show()
assert pulls['entropic, exponent 1'][2] > pulls['entropic, exponent 1'][0]

# %% [markdown]
# Which of them trains the best network is a question for measurements, not for this picture: `afw-jax --mode=paper
# --config=paper:losses` compares nine losses on public MR scans ([docs/paper.md](../docs/paper.md#which-loss)).
#
# ## In your own program
#
# The loss is a pure function; $s$ is one more leaf of the parameters. Below, a network of two convolutions learns to
# segment one slice of a synthetic abdomen, written three times. First the slice:

# %%
from afw_jax.data import phantom

SIDE, STEPS = (32, 5) if SMALL else (64, 60)
scan, truth = phantom.make_phantom(1, (12, SIDE, SIDE), (18.0, 370 / SIDE, 370 / SIDE))
image = jnp.asarray(np.clip((scan[6] + 150) / 500, 0, 1), jnp.float32)[None, ..., None]  # (1, H, W, 1), HU -150 to 350
target = jnp.asarray(truth[6], jnp.int32)[None]  # (1, H, W)
C = len(phantom.ORGANS) + 1
HISTORY = {}

# %% [markdown]
# **Flax Linen** and optax, in ten lines:

# %%
import optax
from flax import linen

net = linen.Sequential([linen.Conv(16, (5, 5)), linen.relu, linen.Conv(C, (5, 5))])
params = {'net': net.init(jax.random.key(0), image), 'log_sigma_sq': losses.init_log_sigma_sq(C)}
tx = optax.adam(0.01)
objective = lambda params: losses.afw_loss(net.apply(params['net'], image), target, params['log_sigma_sq'])


@jax.jit
def train_step(params, state):
  loss, grads = jax.value_and_grad(objective)(params)
  updates, state = tx.update(grads, state)
  return optax.apply_updates(params, updates), state, loss


state, HISTORY['Flax Linen'] = tx.init(params), []
for _ in range(STEPS):
  params, state, loss = train_step(params, state)
  HISTORY['Flax Linen'].append(float(loss))

# %% [markdown]
# **Flax NNX**, where modules hold their parameters. The $s_c$ are an attribute of the module:

# %%
from flax import nnx


class Net(nnx.Module):
  def __init__(self, rngs):
    self.first, self.last = nnx.Conv(1, 16, (5, 5), rngs=rngs), nnx.Conv(16, C, (5, 5), rngs=rngs)
    self.log_sigma_sq = nnx.Param(losses.init_log_sigma_sq(C))

  def __call__(self, image):
    return self.last(nnx.relu(self.first(image)))


model = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)


@nnx.jit
def train_step_nnx(model, optimizer):
  objective = lambda model: losses.afw_loss(model(image), target, model.log_sigma_sq[...])
  loss, grads = nnx.value_and_grad(objective)(model)
  optimizer.update(model, grads)
  return loss


HISTORY['Flax NNX'] = [float(train_step_nnx(model, optimizer)) for _ in range(STEPS)]

# %% [markdown]
# **Plain JAX**, with nothing but arrays. (Equinox works in the same way: its modules are pytrees, and `log_sigma_sq`
# is a field.)

# %%
first, last = jax.random.normal(jax.random.key(0), (2, 5, 5, 16, 16)) * 0.05
weights = {'first': first[:, :, :1] * 4, 'last': last[..., :C], 'log_sigma_sq': losses.init_log_sigma_sq(C)}
conv = lambda x, kernel: jax.lax.conv_general_dilated(
  x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
)
network = lambda w: conv(jax.nn.relu(conv(image, w['first'])), w['last'])
value_and_grad = jax.jit(jax.value_and_grad(lambda w: losses.afw_loss(network(w), target, w['log_sigma_sq'])))

HISTORY['plain JAX (no momentum)'] = []
for _ in range(STEPS):
  loss, grads = value_and_grad(weights)
  weights = jax.tree.map(lambda w, g: w - 0.02 * g, weights, grads)
  HISTORY['plain JAX (no momentum)'].append(float(loss))

# %%
found = net.apply(params['net'], image).argmax(-1)[0]
palette = plt.matplotlib.colors.ListedColormap(['black', *plt.get_cmap('tab10').colors[: C - 1]])
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8), layout='constrained', width_ratios=(1, 1, 1, 1.5))
axes[0].imshow(image[0, ..., 0], cmap='gray')
axes[1].imshow(target[0], cmap=palette, vmin=0, vmax=C - 1, interpolation='nearest')
axes[2].imshow(found, cmap=palette, vmin=0, vmax=C - 1, interpolation='nearest')
for panel, title in zip(axes, ('slice', 'truth', f'Linen, after {STEPS} steps')):
  panel.set_title(title, fontsize=10)
  panel.axis('off')
for name, values in HISTORY.items():
  axes[3].plot(values, label=name)
  assert values[-1] < values[0], name
axes[3].set(xlabel='step', title='CE + AFW-Dice')
axes[3].legend(frameon=False, fontsize=8)
axes[3].spines[['top', 'right']].set_visible(False)
plt.show()

# %% [markdown]
# Two convolutions see little of the picture, and one slice is no data set: this only shows how the loss is used. The
# notebook [quickstart](quickstart.ipynb) trains a real network on whole scans.
