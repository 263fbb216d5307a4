"""Specification of a data set: modality, organs, label ids, default intensity window and split, known defects."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

PARTS = ('train', 'val', 'test')
IGNORED = 255  # class of voxels that count nowhere; there are at most 254 organs


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
  """One data set in one layout on disk.

  Attributes:
    name: of the data set.
    source: layout of its files: 'btcv', 'transunet', 'chaos_ct', 'chaos_mr', 'abdomenct1k',
      'totalsegmentator', 'amos', 'flare22' or 'nifti'.
    modality: 'CT' or 'MR'; of several channels 'CT' if one of them is.
    organs: names; class c is organs[c - 1], class 0 is the background.
    raw_ids: organ -> its ids in the label files.
    output_ids: organ -> its id in predicted label files.
    window_hu: default (low, high) of the intensity window, of several channels that of CT; None: percentiles of each
      scan.
    fractions: default fractions of (train, val, test) for cases without a published part.
    how_to_get, layout: how to download the data set and its folders, for the error when nothing is found.
    ignored_ids: other ids that the label files may contain, treated as background; 'all': every other id.
    regions: name -> its organs: what is scored in place of the organs, where a data set has unions of them.
    unlabelled_id: id of voxels that nobody has labelled, which count nowhere; None: there is none.
    overlapping: where a label map is a folder with a mask for each organ, what becomes of voxels in several masks
      ('error', 'first', 'last': `organ_masks.read_label`); '' where it is one file.
    splits: part -> case ids, as published or given.
    folds: 'train' and 'val' -> case ids, of each fold of a cross-validation, where they are given.
    defects: case id -> known defect, as the end of a sentence that starts with 'it'.
    channels: (name, 'CT' or 'MR') of each channel where a scan has several; () where it has one.
    series: (images, masks), subfolders of a patient's folder in CHAOS MR.
    num_training: number of labelled cases that the data set declares, if it does.
    notes: remarks for the user about its description.
    licence: of its scans and labels, where its description says so.
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
  unlabelled_id: int | None = None
  regions: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  overlapping: str = ''
  splits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  folds: tuple[Mapping[str, tuple[str, ...]], ...] = ()
  defects: Mapping[str, str] = dataclasses.field(default_factory=dict)
  channels: tuple[tuple[str, Literal['CT', 'MR']], ...] = ()
  series: tuple[str, str] | None = None
  num_training: int | None = None
  notes: tuple[str, ...] = ()
  licence: str = ''

  @property
  def labels(self) -> dict[str, int]:
    """Organ -> class."""
    return {organ: c + 1 for c, organ in enumerate(self.organs)}

  @property
  def in_hu(self) -> bool:
    """Whether the intensities of its scans, or of one of their channels, are Hounsfield units."""
    return holds_hu(self.modality, self.source)


def holds_hu(modality: str, source: str) -> bool:
  """Whether the intensities of a data set are Hounsfield units, by two attributes of its `DatasetSpec`."""
  return modality == 'CT' and source != 'transunet'  # TransUNet's files are windowed and scaled to [0, 1]


def without_ignored(classes: np.ndarray) -> np.ndarray:
  """The classes with ignored voxels as background, where only organs are shown."""
  return np.where(classes == IGNORED, 0, classes)


def class_table(spec: DatasetSpec, n_ids: int) -> np.ndarray:
  """(n_ids,) int16 lookup table: id in the label files -> class, or `IGNORED`; -1 for ids unknown to the data set.

  Args:
    spec: the data set.
    n_ids: largest id to look up, plus one.
  """
  table = np.full(n_ids, 0 if spec.ignored_ids == 'all' else -1, np.int16)
  ignored = () if spec.ignored_ids == 'all' else spec.ignored_ids
  table[[i for i in (0, *ignored) if i < n_ids]] = 0
  for c, organ in enumerate(spec.organs):
    table[[i for i in spec.raw_ids[organ] if i < n_ids]] = c + 1
  if spec.unlabelled_id is not None and spec.unlabelled_id < n_ids:
    table[spec.unlabelled_id] = IGNORED
  return table
