"""Published data sets with a dozen and more abdominal organs: TotalSegmentator, AMOS and FLARE22.

References:
  TotalSegmentator: Wasserthal J. et al., Radiology: Artificial Intelligence 5(5):e230024, 2023,
    doi 10.1148/ryai.230024.
  AMOS: Ji Y. et al., NeurIPS Datasets and Benchmarks 2022, arXiv:2206.08023.
  FLARE22: Ma J. et al., The Lancet Digital Health 6(11):e815-e826, 2024, arXiv:2308.05862.
"""

import dataclasses
from collections.abc import Sequence

from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.data.sets.window import NAMED_HU
from afw_jax.errors import InputError, did_you_mean

_WINDOW = NAMED_HU['transunet']  # that of the paper is narrow: made for the organs of its data

# By the names of their files: the 13 organs of BTCV in its order, and the duodenum, as in AMOS and FLARE22.
TOTALSEGMENTATOR_ORGANS = (
  *('spleen', 'kidney_right', 'kidney_left', 'gallbladder', 'esophagus', 'liver', 'stomach', 'aorta'),
  *('inferior_vena_cava', 'portal_vein_and_splenic_vein', 'pancreas', 'adrenal_gland_right', 'adrenal_gland_left'),
  'duodenum',
)
_AMOS_ORGANS = (
  *('spleen', 'right_kidney', 'left_kidney', 'gallbladder', 'oesophagus', 'liver', 'stomach', 'aorta'),
  *('inferior_vena_cava', 'pancreas', 'right_adrenal_gland', 'left_adrenal_gland', 'duodenum', 'bladder'),
  'prostate/uterus',
)
_FLARE22_ORGANS = (
  *('liver', 'right_kidney', 'spleen', 'pancreas', 'aorta', 'inferior_vena_cava', 'right_adrenal_gland'),
  *('left_adrenal_gland', 'gallbladder', 'oesophagus', 'stomach', 'duodenum', 'left_kidney'),
)
OVERLAPS = ('error', 'first', 'last')


def _spec(name: str, organs: Sequence[str], **more) -> DatasetSpec:
  """A data set whose label ids are the places of the organs, from 1."""
  ids = {organ: i for i, organ in enumerate(organs, 1)}
  return DatasetSpec(
    **dict(name=name, source=name, modality='CT', window_hu=_WINDOW, fractions=(4.0, 1.0, 0.0)) | more,
    organs=tuple(organs),
    raw_ids={organ: (i,) for organ, i in ids.items()},
    output_ids=ids,
  )


AMOS = _spec(
  'amos',
  _AMOS_ORGANS,
  fractions=(1.0, 0.0, 0.0),
  how_to_get='Download amos22.zip from https://zenodo.org/records/7262581 and unpack it',
  layout='ROOT/imagesTr/amos_0001.nii.gz with ROOT/labelsTr/amos_0001.nii.gz, imagesVa with labelsVa, and imagesTs '
  '(CT: up to amos_0500; MR: from amos_0501 on)',
)
AMOS_MR = dataclasses.replace(AMOS, name='amos_mr', modality='MR', window_hu=None)

FLARE22 = _spec(
  'flare22',
  _FLARE22_ORGANS,
  how_to_get='Download the 50 labelled cases of FLARE22 from https://zenodo.org/records/7860267 and unpack them under '
  'one folder',
  layout='FLARE22_Tr_0001_0000.nii.gz (images) and FLARE22_Tr_0001.nii.gz (label maps) in any folders under ROOT',
)


def totalsegmentator(organs: Sequence[str] = (), overlap: str = 'error') -> DatasetSpec:
  """TotalSegmentator's CT data set, or one in its layout.

  Args:
    organs: file names of masks without their ending, in the order of the classes; (): `TOTALSEGMENTATOR_ORGANS`.
    overlap: what becomes of voxels in several masks, one of `OVERLAPS`: an error, or the first or last of the organs.

  Raises:
    InputError: a name that is no file name, an organ given twice, too many, or an unknown `overlap`.
  """
  organs = tuple(organs) or TOTALSEGMENTATOR_ORGANS
  if len(set(organs)) < len(organs) or len(organs) > 254:
    raise InputError('data.organs', 'names an organ twice, or more than 254', 'Name each once.')
  if bad := [organ for organ in organs if not organ.strip() or '/' in organ or '\\' in organ or organ == 'mean']:
    raise InputError('data.organs', f'{bad[0]!r} is no name of a mask', 'Give file names without .nii.gz.')
  if overlap not in OVERLAPS:
    hint = did_you_mean(overlap, OVERLAPS)
    raise InputError('data.overlap', f'{overlap!r} is not known', f'{hint}Use one of {", ".join(OVERLAPS)}.')
  return _spec(
    'totalsegmentator',
    organs,
    overlapping=overlap,
    how_to_get='Download Totalsegmentator_dataset_v201.zip from https://zenodo.org/records/10047292 and unpack it',
    layout='ROOT/s0001/ct.nii.gz with ROOT/s0001/segmentations/liver.nii.gz and so on, a mask for each organ; '
    'ROOT/meta.csv gives the split',
  )
