# %% [markdown]
# # Networks, and weights from PyTorch
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/)
#
# **Time:** about 3 minutes on two CPU cores, without the installation. **Licence:** Apache-2.0.
#
# Seven networks, from a UNet of 8 million parameters to transformers of 200 million: how large they are, what a
# training step of them needs, and how a network that was trained with PyTorch becomes one of this package, with the
# same logits.

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
import shlex
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


# %%
# @title Run commands
import io


def run(command, *words):
  """Runs a command as in a terminal, shows what it prints while it prints it, and stops the notebook if it fails."""
  program, *given = shlex.split(command)
  start = {'afw-jax': ['-m', 'afw_jax.main'], 'python': []}[program]
  arguments = [sys.executable, *start, *given, *map(str, words)]
  with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
    for part in io.TextIOWrapper(process.stdout, encoding='utf-8', errors='replace', newline=''):
      print(part, end='', flush=True)  # a line, or a state of a progress bar, which replaces the one before
  assert process.returncode == 0, f'exit code {process.returncode}: {command}'


# %% [markdown]
# ## Seven networks
#
# `models.build(name, num_classes)` gives a Flax module. JAX can compute the shapes of its parameters without
# computing, or even allocating, the parameters: `eval_shape`. 2D networks take slices (batch, height, width,
# channels), 3D networks volumes (batch, depth, height, width, channels).

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from afw_jax import models

plt.rcParams['figure.dpi'] = 80
jax.config.update('jax_platforms', 'cpu')  # this notebook computes little; the accelerator is left to the commands

IMAGES = {2: (1, 224, 224, 1), 3: (1, 64, 128, 128, 1)}
parameters = {}
lines = ['| network | image | parameters | in float32 |', '|---|---|---:|---:|']
for name in models.MODELS:
  image = IMAGES[models.module_of(name).SPATIAL_DIMS]
  variables = models.abstract_variables(models.build(name, num_classes=9), image)
  parameters[name] = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  size = ' x '.join(map(str, image[1:-1]))
  lines.append(f'| {name} | {size} | {parameters[name]:,} | {parameters[name] * 4 / 2**20:.0f} MiB |')
display(Markdown('\n'.join(lines)))
assert parameters['unet'] == 7_852_233

figure, axes = plt.subplots(figsize=(8, 2.8), layout='constrained')
colours = ['#4060bf' if models.module_of(name).SPATIAL_DIMS == 2 else '#bf4060' for name in parameters]
axes.barh(list(parameters), [count / 1e6 for count in parameters.values()], color=colours)
axes.set(xlabel='million parameters (blue: 2D, red: 3D)')
axes.invert_yaxis()
axes.spines[['top', 'right']].set_visible(False)
plt.show()

# %% [markdown]
# ## What a training step needs
#
# Parameters are the smaller part. Most of the memory of a training goes into the *activations*, which the backward
# pass needs again. `--mode=plan` compiles the real training step, for a CPU, a GPU or a TPU that need not be there,
# and reports its memory. Two options reduce it: `model.dtype=bfloat16` halves the activations, `model.remat=True`
# computes them again instead of keeping them. [docs/networks.md](../docs/networks.md#size-work-and-memory) has the
# table for all networks at the sizes of the paper; `--target=h100` (or `v5e`, a TPU) plans for that device, where
# JAX's packages for it are installed.

# %%
TINY = ('--config.data.size=(32, 32)', '--config.model.size=testing') if SMALL else ()
for options in ('',) if SMALL else ('', '--config.model.remat=True'):
  run(
    'afw-jax --mode=plan --config=synapse --devices=1 --config.data.size="(96, 96)" --config.train.batch_size=8',
    *TINY,
    *options.split(),
  )

# %% [markdown]
# Here, on a CPU and with small slices, recomputing gains nothing: the same memory, and a third more work. On an
# accelerator, and with volumes, it usually does. That is what planning is for: ask before you trust an option.

# %% [markdown]
# ## Weights from PyTorch
#
# A file of PyTorch weights is a *state dict*: names of layers and their arrays. We make one, for a UNet of two levels
# in the layout of the code that the authors of AFW-Dice released, and save it as `.safetensors`, which needs no
# PyTorch. The weights are random; with a file of your own, skip this cell. (`.pth` files are read where PyTorch is
# installed, without executing anything in them.)

# %%
import safetensors.numpy

rng = np.random.default_rng(0)
state = {}
for block, channels_in, channels_out in (('conv0_0', 1, 4), ('conv1_0', 4, 8), ('conv0_1', 12, 4)):
  for i, channels in ((1, channels_in), (2, channels_out)):
    fan_in = 9 * channels
    state[f'{block}.conv{i}.weight'] = rng.normal(0, (2 / fan_in) ** 0.5, (channels_out, channels, 3, 3))
    state[f'{block}.conv{i}.bias'] = rng.normal(0, 0.1, channels_out)
    state[f'{block}.bn{i}.weight'] = rng.uniform(0.5, 1.5, channels_out)
    state[f'{block}.bn{i}.bias'] = rng.normal(0, 0.1, channels_out)
    state[f'{block}.bn{i}.running_mean'] = rng.normal(0, 0.3, channels_out)
    state[f'{block}.bn{i}.running_var'] = rng.uniform(0.5, 1.5, channels_out)
state['seg_head.0.weight'], state['seg_head.0.bias'] = rng.normal(0, 0.5, (9, 4, 1, 1)), rng.normal(0, 0.1, 9)
state = {name: array.astype(np.float32) for name, array in state.items()}
safetensors.numpy.save_file(state, 'unet.safetensors')
for name in list(state)[:6]:
  print(f'{name:28}{state[name].shape}')
print(f'... {len(state)} arrays')

# %% [markdown]
# **What PyTorch computes.** As an independent reference, here is the same network written down from the definitions of
# PyTorch's layers (channels first, `eval()` mode): convolutions, BatchNorm with its running statistics, 2 x 2 maximum,
# and bilinear upsampling with aligned corners. NumPy and SciPy do; where PyTorch is installed, it computes the same
# functions itself.

# %%
import scipy.signal

try:
  import torch
  import torch.nn.functional as F
except ImportError:
  torch = None


def conv2d(x, weight, bias):
  """(Cin, H, W) -> (Cout, H, W), a cross-correlation with zero padding."""
  if torch:
    made = F.conv2d(torch.tensor(x[None]), torch.tensor(weight), torch.tensor(bias), padding=weight.shape[-1] // 2)
    return made[0].numpy()
  one = lambda kernels: sum(scipy.signal.correlate2d(plane, kernel, mode='same') for plane, kernel in zip(x, kernels))
  return np.stack([one(kernels) + b for kernels, b in zip(weight, bias)])


def batch_norm(x, name):
  weight, bias, mean, var = (state[f'{name}.{key}'] for key in ('weight', 'bias', 'running_mean', 'running_var'))
  if torch:
    return F.batch_norm(torch.tensor(x[None]), *map(torch.tensor, (mean, var, weight, bias)))[0].numpy()
  column = lambda v: v[:, None, None]
  return column(weight) * (x - column(mean)) / np.sqrt(column(var) + 1e-5) + column(bias)


def max_pool(x):
  if torch:
    return F.max_pool2d(torch.tensor(x), 2).numpy()
  return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))


def upsample(x):
  """Twice the size; the corners of both grids coincide."""
  if torch:
    return F.interpolate(torch.tensor(x[None]), scale_factor=2, mode='bilinear', align_corners=True)[0].numpy()
  for axis in (1, 2):
    n = x.shape[axis]
    at = np.linspace(0, n - 1, 2 * n)
    low = np.minimum(at.astype(int), n - 2)
    share = (at - low).reshape([-1 if axis == a else 1 for a in range(3)])
    x = np.take(x, low, axis) * (1 - share) + np.take(x, low + 1, axis) * share
  return x


def block(x, name):
  for i in (1, 2):
    x = conv2d(x, state[f'{name}.conv{i}.weight'], state[f'{name}.conv{i}.bias'])
    x = np.maximum(batch_norm(x, f'{name}.bn{i}'), 0)
  return x


def reference(image):
  """(1, H, W) -> logits (9, H, W)."""
  x00 = block(image, 'conv0_0')
  x10 = block(max_pool(x00), 'conv1_0')
  x01 = block(np.concatenate([x00, upsample(x10)]).astype(np.float32), 'conv0_1')
  return conv2d(x01, state['seg_head.0.weight'], state['seg_head.0.bias'])


# %% [markdown]
# **The same in JAX.** `weights.from_torch` renames the layers and turns the kernels (PyTorch stores them as output,
# input, height, width; Flax as height, width, input, output). The number of classes is read from the weights.

# %%
from afw_jax import weights
from afw_jax.data import phantom
from afw_jax.weights import files

SIDE = 32 if SMALL else 96
scan, truth = phantom.make_phantom(3, (8, SIDE, SIDE), (28.0, 370 / SIDE, 370 / SIDE))
image = np.clip((scan[4] + 150.0) / 500, 0, 1).astype(np.float32)

variables = weights.from_torch('unet', files.read('unet.safetensors'), features=(4, 8))
model = models.build('unet', num_classes=9, features=(4, 8))
with jax.default_matmul_precision('highest'):
  logits = jax.jit(model.apply)(variables, image[None, ..., None])[0]  # (H, W, 9)
expected = np.moveaxis(reference(image[None]), 0, -1)

distance = np.abs(logits - expected)
print(f'reference: {"PyTorch " + torch.__version__ if torch else "NumPy"}')
print(f'standard deviation of the logits {expected.std():.3f}, largest difference {distance.max():.1e}')
assert distance.max() < 3e-5 * expected.std()

figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout='constrained')
limit = np.abs(expected[..., 1]).max()
axes[0].imshow(image, cmap='gray')
axes[1].imshow(expected[..., 1], cmap='PuOr', vmin=-limit, vmax=limit)
axes[2].imshow(logits[..., 1], cmap='PuOr', vmin=-limit, vmax=limit)
shown = axes[3].imshow(distance[..., 1], cmap='magma')
for panel, title in zip(axes, ('slice', 'logit of class 1, reference', 'logit of class 1, JAX', 'difference')):
  panel.set_title(title, fontsize=10)
  panel.axis('off')
figure.colorbar(shown, ax=axes[3], format='%.0e')
plt.show()

# %% [markdown]
# The two agree up to the rounding of float32. The tests of this package compare all seven networks in this way with
# their published PyTorch code ([docs/conversion.md](../docs/conversion.md) names it).
#
# A file that does not fit is never taken as it is. Every key that is missing, unknown or of another shape is named:

# %%
from afw_jax.errors import InputError

damaged = {name: array for name, array in state.items() if name != 'seg_head.0.bias'}
try:
  weights.from_torch('unet', damaged, features=(4, 8))
  raise AssertionError('a state dict without a bias was accepted')
except InputError as error:
  print(error)
  assert 'seg_head.0.bias' in str(error)

# %% [markdown]
# ## A run from a file
#
# On the command line, `--mode=convert` makes a run from the file. The config says what weights do not know: whose
# organs these are, the intensity window, the working grid. The run then predicts, is scored, or is trained further,
# like any other.

# %%
FEW = ('--num_cases=9', '--shape', 10, 40, 40) if SMALL else ()
run('python -m afw_jax.data.phantom --output=scans --num_cases=9', *FEW)
run(
  'afw-jax --mode=convert --config=demo --config.data.root=scans --config.model.name=unet '
  '--config.model.unet.features="(4, 8)" --input=unet.safetensors --workdir=runs/converted'
)
run('afw-jax --mode=predict --workdir=runs/converted --input=scans/imagesTs --output=labels')
assert pathlib.Path('labels/new_000.nii.gz').exists()

# %% [markdown]
# (The weights are random, and so are these label maps.) Whole networks come in through `convert`; published *encoders*
# of TransUNet and VATransUNet, trained on ImageNet, start a training by `--config.model.pretrained=FILE`
# ([docs/conversion.md](../docs/conversion.md#published-encoders)).
