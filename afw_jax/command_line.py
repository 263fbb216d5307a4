"""Command-line arguments before they are parsed: the help screen, configs by name, repeated options, paths with ~."""

import itertools
import os
import re
import textwrap
from collections.abc import Iterator

from afw_jax.config import defaults, shipped
from afw_jax.errors import InputError
from afw_jax.inference import batch

# Options of a config that are paths, by section.
PATHS = (
  ('data', 'root'),
  ('data', 'store'),
  ('model', 'pretrained'),
  ('model', 'init_from'),
  ('runtime', 'compilation_cache'),
)
_LISTED = 10  # files that are passed over for one reason and named on the terminal

HELP = """\
afw-jax: abdominal organ segmentation with the Asymmetric Focal Weighted Dice loss

  afw-jax --config=NAME|FILE.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]

modes, each with an example
  all        prepare, train, evaluate and report (the default); the same command again resumes
             afw-jax --config=synapse --config.data.root=data/synapse --workdir=runs/synapse
  check      problems and a fingerprint of a data set, and what spacing, size and batch to train with
             afw-jax --mode=check --config=folder --config.data.root=data/mine [--memory_gib=16]
  prepare    afw-jax --mode=prepare --config=folder --config.data.root=data/mine --workdir=runs/mine
  train      afw-jax --mode=train --config=synapse --workdir=runs/short --config.train.epochs=10
  evaluate   score a checkpoint on the test cases, each as a volume on the grid of its scan
             afw-jax --mode=evaluate --config=synapse --workdir=runs/synapse --config.eval.split=val
             of the folds of a cross-validation (--config.data.fold=1/2, 2/2): pool their held-out cases
             afw-jax --mode=evaluate --workdir=runs/fold1,runs/fold2 --output=runs/folds
  report     afw-jax --mode=report --workdir=runs/synapse
  compare    afw-jax --mode=compare --workdir=runs/a,runs/b --output=comparison.md
  view       the page of an evaluated run or a folder of predictions, with all scans at full resolution
             afw-jax --mode=view --workdir=runs/synapse [--port=8000]
  predict    label maps of new scans: a NIfTI or multi-frame DICOM file, a DICOM series, or a folder of these
             afw-jax --mode=predict --workdir=runs/synapse --input=scan.nii.gz --output=labels.nii.gz
             the average of several networks: --workdir=runs/fold1,runs/fold2
             options: --checkpoint=last --largest_component --probabilities --mirror_axes=0,1 --overlap=0.7
                      --overwrite --strict --page --format=dicom_seg --resample_dicom (check, prepare, too)
  export     one file to hand over, which predict takes as a run, and which predicts without this package
             afw-jax --mode=export --workdir=runs/fold1,runs/fold2 --output=model.zip
  import     afw-jax --mode=import --input=model.zip --workdir=runs/imported
  convert    a run from PyTorch weights of a reference implementation
             afw-jax --mode=convert --config=synapse --input=weights.pth --workdir=runs/converted
  plan       memory and communication of a training step, compiled without the hardware
             afw-jax --mode=plan --config=synapse --target=h100 --devices=1,4,2x4 [--memory_gib=80]
  paper      train what the tables of the paper and its Figures 3 to 7 need, and collect them
             afw-jax --mode=paper --config=paper:table1 --workdir=runs/paper --seeds=0,1,2 [--shard=0/4]
             options: --dry_run (what is missing, and what it needs) --collect (the tables; no training)

configs      {configs}
config keys  --config.loss.name=ce_dice --config.model.name=transunet --config.train.batch_size=8 ...
             all keys and their defaults: {defaults}
hosts        --coordinator=HOST:PORT --num_processes=N --process_id=I (SLURM, Kubernetes, TPU: detected)
             to prepare on several: --shard=I/N, or --scheduler=ADDRESS of a Dask cluster
"""


def help_text() -> str:
  """The help screen."""
  return HELP.format(configs=_wrapped(shipped.names(), indent=13), defaults=defaults.__file__)


def normalise(argv: list[str]) -> list[str]:
  """The arguments as absl and ml_collections are to see them.

  - `--config=NAME` of a shipped config becomes its path;
  - of a config key that is given several times the last one counts (ml_collections joins repeated tuples).

  Args:
    argv: sys.argv.

  Raises:
    InputError: --config names neither a file nor a shipped config.
  """
  end = argv.index('--') if '--' in argv else len(argv)
  tokens = _joined(argv[1:end])
  last = {token.split('=')[0]: i for i, token in enumerate(tokens) if token.startswith('--config.')}
  kept = [token for i, token in enumerate(tokens) if last.get(token.split('=')[0], i) == i]
  found = [
    f'--config={shipped.find_config(token.removeprefix("--config="))}' if token.startswith('--config=') else token
    for token in kept
  ]
  return [argv[0], *found, *argv[end:]]


def _joined(arguments: list[str]) -> list[str]:
  """'-config X' and '--config X' as '--config=X', and config keys likewise."""
  tokens, following = [], iter([*arguments[1:], None])
  rest = iter(arguments)
  for token, after in zip(rest, following):
    bare = token.lstrip('-')
    if token.startswith('-') and re.match(r'config[.=]|config$', bare):
      token = f'--{bare}'
      if '=' not in token and after is not None and re.match(r'[^-]|-\d|$', after):
        token = f'{token}={after}'
        next(rest), next(following)
    tokens.append(token)
  return tokens


def split_workdirs(text: str, *, several: bool) -> list[str]:
  """The folders that --workdir names, with ~ expanded; [] for ''.

  Args:
    text: of the flag.
    several: whether commas separate folders. A comma in the name of a folder that exists does not.

  Raises:
    InputError: with commas in names, the text could mean other folders that exist too; or an empty name.
  """
  if not text or not several:
    return [os.path.expanduser(text)] if text else []
  parts = text.split(',')
  exists = lambda folder: os.path.exists(os.path.expanduser(folder))

  def readings(first: int) -> Iterator[list[str]]:
    """Every way to read the parts from one on as folders that exist."""
    if first == len(parts):
      yield []
    for end in range(first + 1, len(parts) + 1):
      if exists(folder := ','.join(parts[first:end])):
        yield from ([folder, *rest] for rest in readings(end))

  found = list(itertools.islice(readings(0), 2))
  if len(found) > 1:
    shown = ' or '.join(str(folders) for folders in found)
    raise InputError('--workdir', f'{text} can mean {shown}', 'Rename folders with commas in their names.')
  folders = found[0] if found else parts
  if '' in folders:
    raise InputError('--workdir', f'{text!r} has an empty name', 'Separate folders by one comma.')
  return [os.path.expanduser(folder) for folder in folders]


def prediction_text(outcome: batch.Outcome) -> str:
  """What --mode=predict prints at its end: organ volumes, where the label maps are, and what was passed over."""
  lines = []
  if outcome.rows:
    organs = list(outcome.rows[0]['volume_ml'])
    lines += ['', 'Organ volumes, mL', ''.join(f'{name:>14}' for name in ('scan', *organs))]
    for row in outcome.rows:
      lines.append(f'{row["scan"][-14:]:>14}' + ''.join(f'{row["volume_ml"][organ]:14.1f}' for organ in organs))
    more = f' and {len(outcome.rows) - 1} more' if len(outcome.rows) > 1 else ''
    lines += ['', f'Label maps: {outcome.rows[0]["output"]}{more}']
  by_reason: dict[str, list[str]] = {}
  for path, reason in outcome.passed_over:
    by_reason.setdefault(reason, []).append(path)
  if by_reason:
    lines += ['', f'Passed over ({len(outcome.passed_over)}, all of them in volumes.json):']
  for reason, paths in by_reason.items():
    lines += [f'  {path}: {reason}' for path in paths[:_LISTED]]
    lines += [f'  and {len(paths) - _LISTED} more: {reason}'] if len(paths) > _LISTED else []
  return '\n'.join(lines)


def _wrapped(words: list[str], indent: int) -> str:
  return textwrap.fill(' '.join(words), 100, initial_indent=' ' * indent, subsequent_indent=' ' * indent).strip()


def expand_paths(config) -> None:
  """Replaces a leading ~ in the path options of a config by the home folder, in place.

  Raises:
    InputError: a path option is not text.
  """
  for section, key in PATHS:
    path = config[section][key]
    if not isinstance(path, str):
      raise InputError(f'{section}.{key}', f'{path!r} is not a path', 'Give text')
    config[section][key] = os.path.expanduser(path)
