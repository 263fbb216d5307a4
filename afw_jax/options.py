"""The options of the command line."""

import ml_collections
from absl import flags
from ml_collections import config_flags

from afw_jax.errors import InputError
from afw_jax.system import terminal

MODES = (
  'all',
  'check',
  'prepare',
  'train',
  'evaluate',
  'report',
  'compare',
  'predict',
  'view',
  'export',
  'import',
  'convert',
  'plan',
  'paper',
)

CONFIG = config_flags.DEFINE_config_file('config', None, 'Name of a shipped config, or path of a config file.')
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run; default: runs/NAME_OF_THE_CONFIG. compare, evaluate, predict, export: several with commas.',
)
MODE = flags.DEFINE_enum('mode', 'all', MODES, 'What to do.')
INPUT = flags.DEFINE_string(
  'input',
  None,
  'predict: a NIfTI file, a DICOM series folder, or a folder of scans. convert: a file of PyTorch weights. '
  'import: a model file.',
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'predict: a folder, or a .nii.gz file for one scan. evaluate, folds: a folder. compare: a .md file. export: a .zip.',
)
CHECKPOINT = flags.DEFINE_enum('checkpoint', 'best', ('best', 'last'), 'predict, export: which checkpoint.')
FORMAT = flags.DEFINE_enum(
  'format', 'nifti', ('nifti', 'nrrd', 'mha', 'dicom_seg'), 'predict: format of the label maps.'
)
PROBABILITIES = flags.DEFINE_bool('probabilities', False, 'predict: also write the probability of each organ.')
LARGEST = flags.DEFINE_bool(
  'largest_component', False, 'predict: keep the largest connected component of each organ only.'
)
OVERLAP = flags.DEFINE_float(
  'overlap', None, 'predict: overlap of neighbouring patches, as a share of their size; default: eval.overlap.', 0, 0.99
)
MIRROR = flags.DEFINE_list(
  'mirror_axes', [], 'predict: spatial axes to mirror and average over (test-time augmentation).'
)
RESAMPLE = flags.DEFINE_bool(
  'resample_dicom',
  False,
  'predict, check, prepare: interpolate DICOM slices that are tilted or unevenly spaced to an even grid.',
)
TARGET = flags.DEFINE_string(
  'target', 'cpu', 'plan, check: the accelerator to compile for: cpu, a100_40, a100, h100, h200 or v5e.'
)
DEVICES = flags.DEFINE_string(
  'devices', '', 'plan: numbers of devices, or meshes data x spatial: 1,8,4x2. Default: 1 to 16.'
)
MEMORY = flags.DEFINE_float(
  'memory_gib', None, 'plan, check: memory of one device; plan: where it differs from the usual one.'
)
SEEDS = flags.DEFINE_list('seeds', ['0'], 'paper: the seeds of each run.')
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'paper: say what is missing and what it needs, and train nothing.')
COLLECT = flags.DEFINE_bool('collect', False, 'paper: write the tables from what is there, and train nothing.')
STRICT = flags.DEFINE_bool('strict', False, 'predict: exit code 2 also where files were passed over as no scans.')
OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'predict: make label maps again that are there, and replace files of others. export: the file.'
)
PAGE = flags.DEFINE_bool('page', False, 'predict: also write index.html, a page with the scans, beside the label maps.')
PORT = flags.DEFINE_integer('port', 0, 'view: port of this computer to listen on; 0: any that is free.', 0, 65535)
SHARD = flags.DEFINE_string(
  'shard',
  '',
  'prepare, paper: i/n, from 0: do every n-th case or run from the i-th on. Default: by the SLURM array task.',
)
SCHEDULER = flags.DEFINE_string('scheduler', None, 'prepare: address or scheduler file of a Dask cluster.')
COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'Distributed: HOST:PORT of process 0; auto: from the TPU metadata.'
)
NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Distributed: number of processes; 1: a single process, whatever the environment says.'
)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Distributed: rank of this process, from 0.')


def check(mode: str, config: ml_collections.ConfigDict | None) -> None:
  """Raises InputError where a config or an option belongs to another mode, and would be passed over."""
  if (mode == 'paper') != (config is not None and 'paper' in config):
    cure = 'Give it to --mode=paper.' if mode != 'paper' else 'Give --config=paper:table1; docs/paper.md lists others.'
    raise InputError('--config', f'is not one for --mode={mode}', cure)
  if SHARD.value and mode not in ('prepare', 'paper'):
    raise InputError(
      '--shard',
      f'is an option of --mode=prepare and --mode=paper, and this is --mode={mode}',
      'Prepare the shards first, then train without --shard.',
    )
  if RESAMPLE.present and mode not in ('predict', 'check', 'prepare', 'all'):
    what = f'is an option of --mode=predict, check and prepare, and this is --mode={mode}'
    raise InputError('--resample_dicom', what, 'Leave it out: what was prepared with it is used as it is.')
  if PAGE.value and FORMAT.value != 'nifti':
    cure = 'Predict once more without --format, or look at the segmentations with a DICOM viewer.'
    raise InputError('--page', f'shows NIfTI label maps, and this is --format={FORMAT.value}', cure)
  own = {
    'paper': (SEEDS, DRY_RUN, COLLECT),
    'predict': (PAGE, FORMAT),
    'view': (PORT,),
  }
  for owner, owned in own.items():
    for flag in owned:
      if mode != owner and flag.present:
        raise InputError(
          f'--{flag.name}', f'is an option of --mode={owner}, and this is --mode={mode}', 'Leave it out.'
        )


def parse(argv: list[str]) -> list[str]:
  """Parses the command line; ends the process with one line where it is not valid. Returns what is no option."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, OSError) as error:
    causes = [error]
    while causes[-1].__context__:
      causes.append(causes[-1].__context__)
    for cause in causes:  # of a config file: ml_collections cannot raise it again, since it takes three arguments
      if isinstance(cause, InputError):
        terminal.fail(str(cause))
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    lines = [line.strip() for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
    last = lines[-1] if len(lines) > 1 else ''
    what = f'{lines[0].split("Error whilst")[0]} {last}'
    terminal.fail(f'{what} (--help lists the options and where the config keys are)')
