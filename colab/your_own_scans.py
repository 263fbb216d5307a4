# %% [markdown]
# # Your own scans
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/)
#
# **Time:** about 3 minutes on two CPU cores, without the installation. **Licence:** Apache-2.0.
#
# From a folder of scans and label maps to a trained network: describing the data, choosing window, grid and network,
# training, reading the report, predicting, and handing the result over. Ten synthetic CT scans stand in for yours; to
# use your own, set `DATA` to their folder and follow the same steps. Phantoms are easy: expect to train for longer,
# and to score lower, on patients.

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
# ## A folder and a description
#
# Scans go into `images/`, label maps of the same names into `labels/` (or `imagesTr/`, `labelsTr/`, as nnU-Net has
# them), and `dataset.json` names the organs. Here are ten phantoms, of which we want the liver, the spleen and the
# kidneys:

# %%
import json

DATA = pathlib.Path('mine')
FEW = ('--num_cases=9', '--shape', 10, 40, 40) if SMALL else ()
run('python -m afw_jax.data.phantom --output=mine --num_cases=10', *FEW)

written = json.loads((DATA / 'dataset.json').read_text(encoding='utf-8'))
ids = written['labels']
description = {
  'channel_names': {'0': 'CT'},
  'labels': {'background': 0} | {organ: ids[organ] for organ in ('liver', 'spleen', 'right_kidney', 'left_kidney')},
  'file_ending': '.nii.gz',
  'other_labels': 'background',  # what is labelled but not listed above
}
(DATA / 'dataset.json').write_text(json.dumps(description, indent=2), encoding='utf-8')
print((DATA / 'dataset.json').read_text(encoding='utf-8'))

# %% [markdown]
# `CT` takes the intensities as Hounsfield units; `MR` scales each scan by its percentiles. Without `"other_labels"` an
# id that is not listed is an error, since it may be a forgotten organ.
# [docs/data-sets.md](../docs/data-sets.md#your-own-scans) has all keys, also the split.
#
# ## Look at the data first
#
# Two choices depend on the scans: the **intensity window** (what is black and what is white for the network) and the
# **working grid** (pixels and their size). So look at the intensities of the organs, and at the spacing of the scans.

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display

from afw_jax.data.formats import volumes
from afw_jax.report.style import colour

plt.rcParams['figure.dpi'] = 80
ORGANS = list(description['labels'])[1:]
values = {organ: [] for organ in ORGANS}
print('scan               grid (z, y, x)     mm (z, y, x)')
for path in sorted((DATA / 'images').glob('*.nii.gz')):
  scan, label = volumes.read_image(path), volumes.read_label(DATA / 'labels' / path.name)
  print(f'{path.name:18} {scan.array.shape!s:18} {", ".join(f"{mm:.2f}" for mm in scan.spacing_mm)}')
  for organ in ORGANS:
    values[organ].append(scan.array[label.array == ids[organ]])

LOW, HIGH = -150, 350
figure, axes = plt.subplots(figsize=(8, 2.8), layout='constrained')
for c, organ in enumerate(ORGANS, 1):
  axes.hist(np.concatenate(values[organ]), bins=np.arange(-200, 401, 5), density=True, histtype='step', linewidth=2,
            color=colour(c), label=organ)  # fmt: skip
axes.axvspan(-200, LOW, color='0.85')
axes.axvspan(HIGH, 400, color='0.85', label='outside the window')
axes.set(
  xlabel='HU', xlim=(-200, 400), yticks=(), title=f'Intensities of the organs, and the window from {LOW} to {HIGH} HU'
)
axes.legend(frameon=False)
axes.spines[['top', 'right', 'left']].set_visible(False)
plt.show()
inside = np.mean([np.mean((v >= LOW) & (v <= HIGH)) for organ in ORGANS for v in values[organ]])
print(f'{100 * inside:.1f} % of the organ voxels lie in the window')
assert inside > 0.95

# %% [markdown]
# The organs lie within 256 x 320 mm around the middle of the body, so 64 x 80 pixels of 4 mm hold them. On patients
# take what resolves your smallest organ: the default is 224 x 224 pixels.
#
# ## Prepare: everything is checked before anything is trained
#
# `--mode=prepare` reads every file, checks that scan and label map belong together, and brings them onto the working
# grid. Wrong ids, other geometry, empty or damaged files are named here, not after a night of training. `--mode=check`
# reports the same and prepares nothing: it also shows cases that stand out, and proposes a spacing and a size.

# %%
TINY = ('--config.data.size=(32, 32)', '--config.data.spacing_mm=(12, 12)') if SMALL else ()
DATA_OPTIONS = shlex.split(
  '--config=folder --config.data.root=mine --config.data.window=-150,350 --config.data.size="(64, 80)" '
  '--config.data.spacing_mm="(4, 4)" --config.data.fit=crop_pad --config.data.interpolation=linear '
  '--config.data.fractions="(6, 2, 2)" --workdir=runs/mine'
)
run('afw-jax --mode=prepare', *DATA_OPTIONS, *TINY)

# %% [markdown]
# What happens to a mistake? One label map with an id that `dataset.json` does not list, and no `"other_labels"`:

# %%
strict = {key: value for key, value in description.items() if key != 'other_labels'}
(DATA / 'dataset.json').write_text(json.dumps(strict), encoding='utf-8')
try:
  run('afw-jax --mode=prepare', *DATA_OPTIONS, *TINY)
  raise SystemExit('the unknown id was not noticed')
except AssertionError as stopped:
  print('\n->', stopped)
_ = (DATA / 'dataset.json').write_text(json.dumps(description, indent=2), encoding='utf-8')

# %% [markdown]
# ## Choose a network
#
# A 2D network (`unet`, `unetpp`, `transunet`, `vatransunet`) is trained slice by slice; a 3D network (`unet3d`,
# `unetr`, `unetrpp`) on volumes or crops, with many times the memory and the time. Start with `unet`. `--mode=plan`
# compiles the training step of your config, for this CPU or for an accelerator that need not be there
# (`--target=h100`), and says what memory it needs. Here is a narrow UNet with batches of 8 slices:

# %%
NETWORK = ['--config.model.unet.features=(8, 16, 32, 64, 128)', '--config.train.batch_size=8']
if SMALL:
  NETWORK[0] = '--config.model.unet.features=(4, 8, 8, 8, 8)'
run('afw-jax --mode=plan --devices=1', *DATA_OPTIONS[:-1], *NETWORK, *TINY)

# %% [markdown]
# ## Train
#
# The same command resumes a run that was interrupted. Without `--mode`, preparation, training, scoring and report
# follow each other. Mirroring is switched off, since mirrored abdomens have the liver on the left. For so short a
# training the class weights favour what is found worst (`entropic`); the default are the learned ones of the paper,
# which start slowly ([the_loss](the_loss.ipynb) compares them).

# %%
LOSS = ['--config.loss.ce_afw.weights=entropic', '--config.loss.ce_afw.gamma=1.0']
LENGTH = ['--config.train.epochs=12', '--config.train.validate_every_epochs=3', '--config.optimizer.learning_rate=0.02']
if SMALL:
  LENGTH += ['--config.train.epochs=1', '--config.train.steps_per_epoch=4', '--config.train.validate_every_epochs=1']
AUGMENTATION = ['--config.augment.paper.mirror_axes=()', '--config.augment.paper.max_angle_deg=15.0']
run('afw-jax', *DATA_OPTIONS, *NETWORK, *LOSS, *LENGTH, *AUGMENTATION, *TINY)

# %% [markdown]
# ## Read the report
#
# `report/report.md` has the scores with intervals, the cases with the lowest scores, and what was missed. Read it in
# this order:
#
# 1. **missed**: organs that were not found at all. If a small organ is missed everywhere, train for longer, or look at
#    its *pull* below.
# 2. **DSC and HD95 together**: a high DSC with a large HD95 means far-away islands;
#    `--config.eval.largest_component=True` removes them.
# 3. **The interval**: with few cases it is wide, and no small difference between two runs counts. `data.fold=1/5` to
#    `5/5` (cross-validation) scores every case once ([docs/running.md](../docs/running.md#cross-validation)).
# 4. **The pictures of the worst cases**: often the label map is wrong, not the network.

# %%
report = pathlib.Path('runs/mine/report/report.md').read_text(encoding='utf-8')
rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in report.splitlines() if line.startswith('|')]
rows = rows[: 2 + len(ORGANS) + 1]  # the table by organ; its first columns, and how often an organ was missed
keep = [rows[0].index(name) for name in ('organ', 'DSC (%)', 'HD95 (mm)', 'missed')]
display(Markdown('\n'.join('| ' + ' | '.join(row[i] for i in keep) + ' |' for row in rows)))
assert {row[0] for row in rows[2:-1]} == set(ORGANS)

# %%
display(Image('runs/mine/report/curves.png', width=760))
display(Image('runs/mine/report/learned_weights.png', width=760))

# %% [markdown]
# The second picture has the weight of each class, and the pull of the loss on it. The test case with the lowest score:

# %%
from afw_jax.report.runs import read_run

scored = read_run('runs/mine')
worst = scored.cases[int(np.argmin(scored.mean_over_organs('dsc')))]
display(Image(f'runs/mine/pictures/{worst}.png', width=760))

# %% [markdown]
# ## Predict
#
# `--input` is a scan, a DICOM series, or a folder of any of them; each label map lies on the grid of its scan, with
# the ids of `dataset.json`. `volumes.csv` has the volume of each organ in mL.

# %%
run('afw-jax --mode=predict --workdir=runs/mine --input=mine/imagesTs --output=new_labels --largest_component')
print(pathlib.Path('new_labels/volumes.csv').read_text(encoding='utf-8'))

# %% [markdown]
# The same in Python, for instance in a program of your own:

# %%
import jax

jax.config.update('jax_platforms', 'cpu')  # the notebook itself needs no accelerator
from afw_jax import predict

trained = predict.load('runs/mine')
scan = volumes.read_image('mine/imagesTs/new_000.nii.gz')
labels, _ = predict.predict_volume(trained, scan, largest_component=True)
by_command = volumes.read_label('new_labels/new_000.nii.gz').array
print(trained.labels, '\nsame labels as the command:', np.mean(trained.file_ids(labels) == by_command))
assert labels.shape == scan.array.shape and np.mean(trained.file_ids(labels) == by_command) > 0.999

# %% [markdown]
# ## Hand it over
#
# Everything that prediction needs is in the folder of the run: the network, its window and grid, the names and ids of
# the organs. `config.json`, `environment.json` and `splits.json` say how it was made. Who has this package can predict
# with a copy of `config.json` and `checkpoints/`; say along with it on which scans it was trained and how it scored on
# which.

# %%
for path in sorted(pathlib.Path('runs/mine').iterdir()):
  size = (
    sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) if path.is_dir() else path.stat().st_size
  )
  print(f'{path.name + "/" * path.is_dir():20}{size / 2**20:8.2f} MiB')
