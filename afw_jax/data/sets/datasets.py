"""What a data set is: organs by name, label ids, default window, and who trains and who tests."""

import dataclasses
import difflib
import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from afw_jax.data.sets import public
from afw_jax.data.sets.folder import read_folder_spec
from afw_jax.errors import InputError

PARTS = ('train', 'val', 'test')
WINDOWS = {'paper': (50.0, 350.0), 'transunet': (-125.0, 275.0)}  # HU
PERCENTILES = (0.5, 99.5)
_PUBLIC = {
  name: getattr(public, name.upper())
  for name in ('chaos_ct', 'chaos_mr_t1in', 'chaos_mr_t1out', 'chaos_mr_t2', 'chaos4', 'abdomenct1k')
}
NAMES = ('synapse', *_PUBLIC, 'folder')


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
  """One data set in one layout on disk.

  Attributes:
    name: its name.
    source: which reader finds its files: 'btcv', 'transunet', 'chaos_ct', 'chaos_mr', 'abdomenct1k' or 'nifti'.
    modality: 'CT' or 'MR'.
    organs: names; class c is organs[c - 1], class 0 the background.
    raw_ids: organ -> ids in the label files that mean it.
    output_ids: organ -> id written in predicted label files.
    window_hu: default (low, high) of the intensity window; None = percentiles of each scan.
    fractions: default shares of (train, val, test) where no part is published.
    ignored_ids: other ids that may occur and become background; 'all' = every other id.
    splits: part -> case ids, where published or given.
    defects: case id -> what is known to be wrong with it.
    series: CHAOS MR: folders of images and masks below a patient's folder.
    num_training: how many labelled cases the data set claims, if it does.
    how_to_get, layout: for the message when nothing is found.
  """

  name: str
  source: str
  modality: Literal['CT', 'MR']
  organs: tuple[str, ...]
  raw_ids: Mapping[str, tuple[int, ...]]
  output_ids: Mapping[str, int]
  window_hu: tuple[float, float] | None
  fractions: tuple[float, float, float]
  how_to_get: str
  layout: str
  ignored_ids: tuple[int, ...] | Literal['all'] = ()
  splits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  defects: Mapping[str, str] = dataclasses.field(default_factory=dict)
  series: tuple[str, str] | None = None
  num_training: int | None = None

  @property
  def labels(self) -> dict[str, int]:
    """Organ name -> class."""
    return {organ: c + 1 for c, organ in enumerate(self.organs)}


def spec(name: str, root: str | None = None) -> DatasetSpec:
  """The data set of that name, in the layout that lies at `root`.

  Args:
    name: one of `NAMES`; 'folder' is a user's own data set, described by ROOT/dataset.json.
    root: where it lies. None gives the challenge's own layout.

  Returns:
    A `DatasetSpec`. Synapse in TransUNet's layout and CHAOS as NIfTI folders have other ids in their label files than
    the challenge's files; organs and classes are the same.

  Raises:
    InputError: an unknown name, or a dataset.json that cannot be used.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(str(name), NAMES, 1)
    raise InputError(
      f'data set {name!r}',
      'unknown name',
      (f'Did you mean {near[0]!r}? ' if near else '') + f'Use one of {", ".join(NAMES)}',
    )
  if name == 'folder':
    if root is None:
      raise InputError("data set 'folder'", 'no path given', 'Say where it lies')
    return DatasetSpec(**read_folder_spec(root))
  here = lambda *folders: root is not None and any((pathlib.Path(root) / f).is_dir() for f in folders)
  if name == 'synapse':
    transunet = here('train_npz', 'test_vol_h5')
    return DatasetSpec(**(public.SYNAPSE_TRANSUNET if transunet else public.SYNAPSE_BTCV))
  fields = _PUBLIC[name]
  if fields['source'] in ('chaos_ct', 'chaos_mr') and here('images', 'imagesTr'):
    fields = getattr(public, f'{name.upper()}_NIFTI')
  return DatasetSpec(**fields)


def class_table(spec: DatasetSpec, n_ids: int) -> np.ndarray:
  """(n_ids,) int16: raw id -> class; -1 where the data set does not know the id.

  Args:
    spec: the data set.
    n_ids: one more than the largest id to look up.
  """
  table = np.full(n_ids, 0 if spec.ignored_ids == 'all' else -1, np.int16)
  known = () if spec.ignored_ids == 'all' else spec.ignored_ids
  table[[i for i in (0, *known) if i < n_ids]] = 0
  for c, organ in enumerate(spec.organs):
    table[[i for i in spec.raw_ids[organ] if i < n_ids]] = c + 1
  return table


def resolve_window(window, spec: DatasetSpec) -> tuple[float, float] | Literal['percentile']:
  """The intensity window to use.

  Args:
    window: None (the data set's own), 'paper' (50..350 HU), 'transunet' (-125..275 HU), 'percentile' (of each scan), or
      (low, high).
    spec: the data set.

  Returns:
    (low, high), or 'percentile'.

  Raises:
    InputError: an unknown name, not low < high, or HU for intensities that are not HU.
  """
  if window is None:
    return 'percentile' if spec.window_hu is None else spec.window_hu
  if isinstance(window, str):
    if window == 'percentile':
      return window
    if window not in WINDOWS:
      raise InputError(
        f'window {window!r}', 'unknown name', f'Use one of {", ".join(WINDOWS)}, percentile, or two numbers (low, high)'
      )
    if spec.modality != 'CT' or spec.source == 'transunet':
      raise InputError(
        f'window {window!r}',
        f'is in HU, which the images of {spec.name} are not',
        'Leave the window out: the data set brings its own',
      )
    return WINDOWS[window]
  low_high = tuple(float(v) for v in window)
  if len(low_high) != 2 or not all(map(math.isfinite, low_high)) or low_high[0] >= low_high[1]:
    raise InputError(f'window {window!r}', 'is not (low, high)', 'Give two numbers with low < high')
  return low_high


def scan_window(array: np.ndarray, window: Sequence[float] | str) -> tuple[float, float]:
  """(low, high) for one scan; 'percentile' looks at its voxels.

  The low end is the 0.5th percentile of the voxels above the scan's minimum (background filled with one value does not
  count). The high end is the 99.5th percentile of the voxels above their mean, the body: of all voxels it would
  depend on how much air surrounds the patient.

  Args:
    array: intensities, any shape.
    window: as `resolve_window` returns it, or its JSON.

  Returns:
    (low, high) with low < high.
  """
  if window != 'percentile':
    return float(window[0]), float(window[1])
  inside = array[array > array.min()]
  if not inside.size:
    return float(array.min()), float(array.min()) + 1.0
  low = np.percentile(inside, PERCENTILES[0])
  high = np.percentile(inside[inside >= inside.mean()], PERCENTILES[1])
  return float(low), float(high if high > low else low + 1.0)


def split_cases(
  cases: Sequence[tuple[str, str, str | None]], fractions: Sequence[float], seed: int, *, resplit_train: bool = False
) -> dict[str, list[str]]:
  """Assigns every case to train, val or test.

  A published or given part stays as it is; the others are dealt by subject, in an order that depends only on the seed
  and the subject's name (another case more or less does not shuffle the rest).

  Args:
    cases: (case id, subject, part or None) each.
    fractions: shares of (train, val, test), not necessarily of sum 1, for the cases without a part.
    seed: of the order.
    resplit_train: also deal the given train cases between train and val, when no val part is given.

  Returns:
    {'train': [...], 'val': [...], 'test': [...]}, sorted; a part may be empty, train only if every part is given.

  Raises:
    InputError: fractions that are no shares, or a test share although a test part is given.
  """
  fractions = tuple(float(f) for f in fractions)
  if len(fractions) != 3 or not all(math.isfinite(f) and f >= 0 for f in fractions) or fractions[0] <= 0:
    raise InputError(
      f'split fractions {fractions}',
      'are not shares of (train, val, test)',
      'Give three numbers, none negative and train above 0, such as (6, 1, 3)',
    )
  given = {part for _, _, part in cases if part}
  if 'test' in given and fractions[2]:
    raise InputError(
      f'split fractions {fractions}',
      'ask for test cases, but the data set has its own test part',
      'Set the third number to 0',
    )
  out: dict[str, list[str]] = {part: [] for part in PARTS}
  free: dict[str, list[str]] = {}
  for case_id, subject, part in cases:
    if part is None or (resplit_train and part == 'train' and 'val' not in given):
      free.setdefault(subject, []).append(case_id)
    else:
      out[part].append(case_id)
  order = sorted(free, key=lambda s: hashlib.sha256(f'{seed}/{s}'.encode()).hexdigest())
  for part, count in zip(PARTS, _shares(len(order), fractions)):
    for subject in order[:count]:
      out[part] += free[subject]
    order = order[count:]
  return {part: sorted(ids) for part, ids in out.items()}


def _shares(n: int, fractions: Sequence[float]) -> tuple[int, int, int]:
  """Whole numbers of sum n; every part asked for gets one while there are enough, train first."""
  exact = [n * f / sum(fractions) for f in fractions]
  counts = [math.floor(e) for e in exact]
  for i in sorted(range(3), key=lambda i: (counts[i] - exact[i], i))[: n - sum(counts)]:
    counts[i] += 1
  for i in range(3):  # nobody asked for is left out while another part has two
    if fractions[i] and not counts[i] and max(counts) > 1:
      counts[counts.index(max(counts))] -= 1
      counts[i] += 1
  if n and not counts[0]:
    counts[counts.index(max(counts))] -= 1
    counts[0] += 1
  return tuple(counts)
