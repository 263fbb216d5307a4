# %% [markdown]
# # The tables of the paper, and more than one device
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/)
#
# **Time:** about 4 minutes on two CPU cores, without the installation. **Licence:** Apache-2.0.
#
# Table 1 of [Guo et al. 2024](https://doi.org/10.20169/j.issn.2095-2163.240703) compares four losses on the Synapse
# data. This notebook makes that table by one command, with tiny networks on synthetic scans in place of the data. Then
# it divides the loss over eight devices and shows that its value stays the same, and plans a training on many GPUs or
# a TPU.

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
# ## One table by one command
#
# `paper:table1` trains four networks, each with another loss, scores them and writes the table. With `phantom`, small
# networks are trained for a moment on a few synthetic scans. **The numbers below mean nothing**: they show that all of
# it works. On the real data the command is `--config=paper:table1 --config.synapse.data.root=data/synapse
# --seeds=0,1,2`.

# %%
LENGTH = () if SMALL else ('--config.synapse.train.steps_per_epoch=40', '--config.synapse.train.epochs=5')
run('afw-jax --mode=paper --config=paper:table1,phantom --workdir=runs/paper', *LENGTH)

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

plt.rcParams['figure.dpi'] = 80
table = pathlib.Path('runs/paper/tables/table1.md').read_text(encoding='utf-8')
display(Markdown(table))
assert all(loss in table for loss in ('CE + Dice', 'CE + AFW-Dice'))

# %% [markdown]
# The number of the paper stands in parentheses, and the caption says what differs. Beside the Markdown file there are
# CSV, LaTeX and a picture. What the whole paper would need, without training anything:

# %%
run('afw-jax --mode=paper --config=paper:table1,phantom --workdir=runs/paper --dry_run', *LENGTH)

# %% [markdown]
# `--config=paper:all` lists all runs of the paper with their GPU hours in the same way
# ([docs/paper.md](../docs/paper.md)).
#
# ## A mesh of devices
#
# A batch can be divided over devices (*data parallelism*), and each sample along its first axis (*spatial
# partitioning*), for volumes that do not fit one device. JAX can pretend that the CPU is eight devices, which is
# enough to see that results stay the same.

# %%
import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
from jax.sharding import NamedSharding, PartitionSpec

from afw_jax import losses
from afw_jax.data import phantom
from afw_jax.distributed import sharding

SIDE = 16 if SMALL else 64
truth = np.stack([phantom.make_phantom(i, (16, SIDE, SIDE), (14.0, 370 / SIDE, 370 / SIDE))[1][4:12] for i in range(2)])
labels = truth.reshape(16, SIDE, SIDE).astype(np.int32)  # 16 slices of two abdomens
C = len(phantom.ORGANS) + 1
noise = jax.random.normal(jax.random.key(0), (16, SIDE, SIDE, C))
logits = np.asarray(noise + 7 * jax.nn.one_hot(labels, C))  # a network that is mostly right
s = np.zeros(C, np.float32)
value_and_grad = jax.jit(jax.value_and_grad(losses.afw_loss, argnums=(0, 2)))

results = {}
for data, spatial in ((1, 1), (8, 1), (4, 2)):
  mesh = sharding.make_mesh(data, spatial, jax.devices()[: data * spatial])
  divided = NamedSharding(mesh, PartitionSpec('data', 'spatial'))
  loss, gradient = value_and_grad(jax.device_put(logits, divided), jax.device_put(labels, divided), s)
  results[data, spatial] = float(loss), *map(np.asarray, gradient)
  print(f'{data} x {spatial} devices: loss {loss:.6f}')

for loss, by_logits, by_s in results.values():
  np.testing.assert_allclose(loss, results[1, 1][0], rtol=1e-5)
  np.testing.assert_allclose(by_logits, results[1, 1][1], atol=1e-6)
  np.testing.assert_allclose(by_s, results[1, 1][2], atol=1e-5)

# %% [markdown]
# The loss is written as if for one device; `jit` adds the sums over devices. That matters for a Dice loss, which is a
# ratio of sums: **the mean of the losses of single devices is another number**. A device whose slices lack an organ
# would count that organ as lost.

# %%
local = [float(value_and_grad(logits[i : i + 2], labels[i : i + 2], s)[0]) for i in range(0, 16, 2)]
print(f'global loss {results[8, 1][0]:.4f}, mean of eight local losses {np.mean(local):.4f}')
assert abs(np.mean(local) - results[8, 1][0]) > 0.01

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 2.9), layout='constrained', width_ratios=(1, 1, 1.3))
for panel, (data, spatial) in ((left, (8, 1)), (middle, (4, 2))):
  owner = np.zeros((16, SIDE))
  for i, device in enumerate(np.ndindex(data, spatial)):
    rows, columns = 16 // data, SIDE // spatial
    part = np.s_[device[0] * rows : (device[0] + 1) * rows, device[1] * columns : (device[1] + 1) * columns]
    owner[part] = i
    panel.text((device[1] + 0.5) * columns, (device[0] + 0.5) * rows - 0.5, i, ha='center', va='center')
  panel.imshow(owner, cmap='Pastel1', aspect='auto', interpolation='nearest')
  panel.set(
    title=f'mesh {data} x {spatial}: device of each part', xlabel='row of the slice', ylabel='slice of the batch'
  )
right.bar(range(8), local, color='#80bf80', label='each device by itself')
right.axhline(np.mean(local), color='#008020', linestyle='--', label='their mean')
right.axhline(results[8, 1][0], color='#bf4060', label='global loss (this package)')
right.set(xlabel='device', ylabel='CE + AFW-Dice', ylim=(0, 1.45 * max(local)))
right.legend(frameon=False, fontsize=8)
right.spines[['top', 'right']].set_visible(False)
plt.show()

# %% [markdown]
# The statistics of BatchNorm are global in the same way, so that a training gives the same network on any mesh, up to
# rounding. Where you write `shard_map` or `pmap` yourself, pass `axis_name=` to the loss
# ([docs/distributed.md](../docs/distributed.md#in-python)).
#
# ## Planning for hardware that is not here
#
# `--mode=plan` compiles the real training step for several meshes: memory of each device, what the devices send each
# other, and which is the smallest that fits. Here for CPUs, with a miniature of UNETR:

# %%
MESHES = '--devices=1,2' if SMALL else '--devices=1,4x2'
run(
  'afw-jax --mode=plan --config=abdomenct1k_3d:unetr --config.model.size=testing --config.data.size="(32, 64, 64)" '
  '--config.train.batch_size=8',
  MESHES,
)

# %% [markdown]
# With JAX's packages for GPUs or TPUs installed, `--target=h100` or `--target=v5e` compiles for them, and none need be
# there.
#
# ## What eight GPUs or a TPU slice change
#
# | | command | what changes |
# |---|---|---|
# | eight GPUs, one machine | the command for one | all are used; each takes 3 of the 24 slices |
# | several machines | the same on each, with `--coordinator`, or by SLURM or Kubernetes | they share a disk |
# | a TPU slice | the same on every host | products in bfloat16 unless `runtime.matmul_precision=highest` |
# | volumes too large for one device | `--config.mesh.spatial=2` | each sample is divided over two devices |
#
# The loss, the batches and the learning rate stay those of one device, since the *global* batch does: eight devices
# make a step shorter, not different. To use them fully, a larger batch and learning rate are your choice, and another
# training.
#
# So far this has been run on CPUs (up to eight virtual devices, and several processes) and on one GPU; on several GPUs
# and on TPUs it has only been compiled ([docs/distributed.md](../docs/distributed.md)).
