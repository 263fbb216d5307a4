# %% [markdown]
# # Quickstart: from scans to label maps
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/)
#
# **Time:** about 3 minutes on two CPU cores, without the installation. **Licence:** Apache-2.0.
#
# This notebook trains a network that finds eight organs in abdominal CT, scores it on scans that it has not seen,
# looks at what it found, and lets it segment a new scan. The scans are synthetic (*phantoms*), so that nothing has to
# be downloaded and no patient is involved. Phantoms are easy: what you see here shows that everything works, not how
# well it works on patients.

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
# %% [markdown]
# Everything below is done by two commands, `afw-jax` and `python -m afw_jax.data.phantom`. They can be typed into a
# terminal as they stand; the function `run` does the same from a notebook.


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
# ## The scans
#
# Fourteen abdomens: seven to train on, three to choose the best checkpoint, four to test, and one new scan without a
# label map. Each differs in size, posture, spacing and orientation, as files from different scanners do.

# %%
FEW = ('--num_cases=9', '--shape', 10, 40, 40) if SMALL else ()
run('python -m afw_jax.data.phantom --output=scans --num_cases=14', *FEW)

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display

from afw_jax.data.formats import volumes
from afw_jax.data.phantom import ORGANS
from afw_jax.report import overlays, style

plt.rcParams['figure.dpi'] = 80


def windowed(scan):
  """Intensities between -150 and 350 HU as grey values."""
  return np.clip((scan.array + 150.0) / 500, 0, 1)


def show(scan, masks, title):
  """A few slices of a scan, with the organs of each mask drawn over them."""
  path = overlays.case_sheet(
    'sheet.png', windowed(scan), masks, ORGANS, title=title, spacing_mm=scan.spacing_mm, num_slices=2
  )
  display(Image(path, width=760))


scan = volumes.read_image('scans/images/phantom_000.nii.gz')
truth = volumes.read_label('scans/labels/phantom_000.nii.gz')
print(f'{scan.array.shape[0]} slices of {scan.array.shape[1]} x {scan.array.shape[2]} pixels')
print('spacing (z, y, x) in mm:', ', '.join(f'{mm:.2f}' for mm in scan.spacing_mm))
show(scan, {'truth': truth.array}, 'phantom_000')

# %% [markdown]
# ## Training
#
# One command prepares the scans (one orientation, one grid), trains, predicts the test cases, scores and reports.
# `--config=demo` is a narrow UNet; a working grid of 64 x 80 pixels of 4 mm makes it quick. If it is interrupted, the
# same command goes on where it stopped.
#
# One choice is not the paper's. Its learned class weights favour the classes that are already good, so that small
# organs appear late, after a thousand steps or so. This training has 336 steps, and the config takes weights that
# favour what is found worst (`weights=entropic`); the notebook [the_loss](the_loss.ipynb) compares them.

# %%
TINY = (
  '--config.data.size=(32, 48)',
  '--config.data.spacing_mm=(8, 8)',
  '--config.model.unet.features=(4, 8, 8, 8, 8)',
  '--config.train.epochs=1',
  '--config.train.steps_per_epoch=4',
  '--config.train.validate_every_epochs=1',
)
run(
  'afw-jax --config=demo --config.data.root=scans --workdir=runs/quickstart '
  '--config.data.size="(64, 80)" --config.data.spacing_mm="(4, 4)" '
  '--config.train.epochs=12 --config.train.validate_every_epochs=3',
  *(TINY if SMALL else ()),
)

# %% [markdown]
# ## The scores
#
# Each test case is scored as a volume, on the grid of its scan: **DSC** is the overlap (100 % is perfect), **HD95**
# and **ASSD** are distances between the surfaces, **NSD** is the part of the surface within 2 mm.
# [docs/metrics.md](../docs/metrics.md) has the definitions, and says what counts for an organ that was missed. The
# intervals are wide: four cases say little.

# %%
from afw_jax.report.runs import read_run
from afw_jax.report.tables import organ_rows

scored = read_run('runs/quickstart')
lines = ['| organ | DSC (%) | 95 % interval | HD95 (mm) | NSD (%) | missed |', '|---|---:|---:|---:|---:|---:|']
for organ, scores, counts in organ_rows(scored):
  dsc, hd95, nsd = scores['dsc'], scores['hd95_pooled_mm'], scores['nsd']
  lines.append(
    f'| {organ} | {dsc.mean:.1f} | {dsc.low:.1f} to {dsc.high:.1f} '
    f'| {hd95.mean:.1f} | {nsd.mean:.1f} | {counts["missed"]} |'
  )
display(Markdown('\n'.join(lines)))
assert set(scored.organs) == set(ORGANS) and len(lines) == len(ORGANS) + 3  # two lines of the heading, and the mean

# %% [markdown]
# The training in pictures: the loss, and the DSC of the validation cases.

# %%
display(Image('runs/quickstart/report/curves.png', width=760))

# %% [markdown]
# The next picture has the weight of each class and the pull of the loss on it. An organ that is found worse than
# others is weighted more, until it catches up.

# %%
display(Image('runs/quickstart/report/learned_weights.png', width=760))

# %% [markdown]
# ## Looking at the results
#
# Numbers hide what goes wrong, so look at the pictures too. Truth and prediction of the test case with the lowest
# score:

# %%
order = np.argsort(scored.mean_over_organs('dsc'))
worst, best = scored.cases[order[0]], scored.cases[order[-1]]
print(f'lowest mean DSC: {worst}, highest: {best}')
display(Image(f'runs/quickstart/pictures/{worst}.png', width=760))

# %% [markdown]
# The same label maps in three dimensions, seen from the front and from the side. The surface is drawn as it is,
# without smoothing, so that single wrong voxels show.

# %%
from afw_jax.report import surfaces

truth = volumes.read_label(f'scans/labels/{worst}.nii.gz')
found = volumes.read_label(f'runs/quickstart/predictions/{worst}.nii.gz')
classes = range(1, len(ORGANS) + 1)
pixels = 120 if SMALL else 340

figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout='constrained')
for column, azimuth in enumerate((20, 70)):
  view = surfaces.camera(azimuth, 15)
  frame = surfaces.frame([truth.array, found.array], truth.spacing_mm, view, pixels=pixels)
  for row, (name, labels) in enumerate((('truth', truth.array), ('prediction', found.array))):
    panel = axes[2 * column + row]
    panel.imshow(surfaces.render(labels, truth.spacing_mm, view, frame, classes=classes))
    panel.set_title(name)
    panel.axis('off')
figure.legend(
  handles=[style.legend_patch(c, organ) for c, organ in enumerate(ORGANS, 1)], ncols=8, loc='outside lower center',
  frameon=False, fontsize=8,
)  # fmt: skip
plt.show()

# %% [markdown]
# `runs/quickstart/report/index.html` is the report as one page, with sortable tables and a viewer in which the scans
# can be turned. Open it in a browser. From Colab the next cell downloads it; there or elsewhere, `afw-jax --mode=view
# --workdir=runs/quickstart` on your own machine shows every scan ([docs/running.md](../docs/running.md#the-page)).

# %%
PAGE = pathlib.Path('runs/quickstart/report/index.html')
if PAGE.exists() and 'google.colab' in sys.modules:
  from google.colab import files

  files.download(str(PAGE))

# %% [markdown]
# ## A new scan
#
# The network segments any CT scan: a NIfTI file, a DICOM series, or a folder of them. On Colab, set `UPLOAD = True` to
# choose a NIfTI file from your computer; elsewhere set `SCAN` to a path. As it stands, the cell takes the phantom that
# has no label map.
#
# **This network knows phantoms only.** On a scan of a patient its label map will be wrong; train on real scans for
# that ([your_own_scans](your_own_scans.ipynb)).

# %%
UPLOAD = False
SCAN = 'scans/imagesTs/new_000.nii.gz'

if UPLOAD:
  from google.colab import files

  (SCAN,) = files.upload()
run('afw-jax --mode=predict --workdir=runs/quickstart --output=new_labels.nii.gz --overwrite', f'--input={SCAN}')

# %%
scan, labels = volumes.read_image(SCAN), volumes.read_label('new_labels.nii.gz')
show(scan, {'prediction': labels.array}, pathlib.Path(SCAN).name)
voxel_ml = np.prod(scan.spacing_mm) / 1000
lines = ['| organ | volume (mL) |', '|---|---:|']
lines += [f'| {organ} | {(labels.array == c).sum() * voxel_ml:.0f} |' for c, organ in enumerate(ORGANS, 1)]
display(Markdown('\n'.join(lines)))
assert labels.array.shape == scan.array.shape

# %% [markdown]
# The label map lies on the grid of the scan, so that any viewer shows it over the scan (3D Slicer, ITK-SNAP, FSLeyes).
# `volumes.csv` beside it has the volumes.
#
# ## Where to go on
#
# - [the_loss](the_loss.ipynb): what the loss computes, and what it does in a training
# - [your_own_scans](your_own_scans.ipynb): the same with your data
# - [networks_and_weights](networks_and_weights.ipynb): seven networks, and weights from PyTorch
# - [paper_and_scale](paper_and_scale.ipynb): the tables of the paper, several devices
# - [docs/running.md](../docs/running.md): all modes and options
