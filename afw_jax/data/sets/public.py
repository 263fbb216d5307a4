"""Published abdominal data sets: label ids, splits, known defects, and where to download them.

References:
  Synapse: Landman B. et al., Multi-Atlas Labeling Beyond the Cranial Vault, MICCAI 2015 challenge (syn3193805); the
    split is that of Chen J. et al., TransUNet, arXiv:2102.04306.
  CHAOS: Kavur A. E. et al., Medical Image Analysis 69:101950, 2021, doi 10.1016/j.media.2020.101950.
  AbdomenCT-1K: Ma J. et al., IEEE TPAMI 44(10):6695-6714, 2022, doi 10.1109/TPAMI.2021.3100536.
"""

import dataclasses

from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.data.sets.window import NAMED_HU

PAPER_WINDOW = NAMED_HU['paper']

_BTCV_IDS = dict(
  spleen=1,
  right_kidney=2,
  left_kidney=3,
  gallbladder=4,
  oesophagus=5,
  liver=6,
  stomach=7,
  aorta=8,
  inferior_vena_cava=9,
  portal_and_splenic_vein=10,
  pancreas=11,
  right_adrenal_gland=12,
  left_adrenal_gland=13,
)

# The order of TransUNet and of the paper's tables; class and output id are the position + 1.
_SYNAPSE_ORGANS = ('aorta', 'gallbladder', 'left_kidney', 'right_kidney', 'liver', 'pancreas', 'spleen', 'stomach')


def _numbered(names):
  return {name: i + 1 for i, name in enumerate(names)}


def _single(ids):
  return {name: (i,) for name, i in ids.items()}


def _ids(pattern, numbers):
  return tuple(pattern.format(n) for n in numbers)


SYNAPSE_BTCV = DatasetSpec(
  name='synapse',
  source='btcv',
  modality='CT',
  organs=_SYNAPSE_ORGANS,
  raw_ids={name: (_BTCV_IDS[name],) for name in _SYNAPSE_ORGANS},
  ignored_ids=tuple(i for name, i in _BTCV_IDS.items() if name not in _SYNAPSE_ORGANS),
  output_ids=_numbered(_SYNAPSE_ORGANS),
  window_hu=PAPER_WINDOW,
  fractions=(1.0, 0.0, 0.0),
  splits={
    'train': _ids('case{:04d}', (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)),
    'test': _ids('case{:04d}', (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)),
  },
  how_to_get='Register for the "Multi-Atlas Abdomen Labeling" data (BTCV) at '
  'https://www.synapse.org/#!Synapse:syn3193805 and unpack RawData.zip, or use the '
  'preprocessed folder of TransUNet',
  layout='ROOT/Training/img/img0001.nii.gz with ROOT/Training/label/label0001.nii.gz, or '
  "TransUNet's ROOT/train_npz/case0005_slice000.npz with ROOT/test_vol_h5/case0001.npy.h5",
)

# TransUNet's files: images windowed to [-125, 275] HU and scaled to [0, 1], labels with TransUNet's ids.
SYNAPSE_TRANSUNET = dataclasses.replace(
  SYNAPSE_BTCV,
  source='transunet',
  raw_ids=_single(_numbered(_SYNAPSE_ORGANS)),
  ignored_ids=(),
  window_hu=(0.0, 1.0),
)

# Slices of each training case in TransUNet's train_npz, 2,211 in all.
TRANSUNET_TRAIN_SLICES = dict(
  zip(SYNAPSE_BTCV.splits['train'], (117, 131, 163, 149, 148, 143, 96, 124, 131, 88, 89, 153, 93, 104, 98, 99, 90, 195))
)

_CHAOS_WHERE = (
  'Download CHAOS_Train_Sets.zip from https://zenodo.org/records/3431873 (CC BY-NC-SA 4.0) and '
  'unpack it; the test sets have no public labels'
)
_CHAOS_MR_ORGANS = ('liver', 'right_kidney', 'left_kidney', 'spleen')

# Nominal grey values of the MR masks are 63, 126, 189 and 252; the challenge defines a range around each.
_CHAOS_MR_PNG = {
  'liver': tuple(range(55, 71)),
  'right_kidney': tuple(range(110, 136)),
  'left_kidney': tuple(range(175, 201)),
  'spleen': tuple(range(240, 256)),
}

CHAOS_CT = DatasetSpec(
  name='chaos_ct',
  source='chaos_ct',
  modality='CT',
  organs=('liver',),
  raw_ids={'liver': (255,)},
  output_ids={'liver': 1},
  window_hu=PAPER_WINDOW,
  fractions=(3.0, 1.0, 0.0),
  how_to_get=_CHAOS_WHERE,
  layout='ROOT/Train_Sets/CT/1/DICOM_anon/*.dcm with ROOT/Train_Sets/CT/1/Ground/*.png, or NIfTI: '
  'ROOT/images/NAME.nii.gz with ROOT/labels/NAME.nii.gz (1 liver)',
)
CHAOS_CT_NIFTI = dataclasses.replace(CHAOS_CT, source='nifti', raw_ids={'liver': (1,)})


def _chaos_mr(name, series, masks):
  """(spec of the DICOM and PNG files, spec of NIfTI folders) of one MR sequence."""
  png = DatasetSpec(
    name=name,
    source='chaos_mr',
    modality='MR',
    organs=_CHAOS_MR_ORGANS,
    raw_ids=_CHAOS_MR_PNG,
    output_ids=_numbered(_CHAOS_MR_ORGANS),
    window_hu=None,
    fractions=(3.0, 1.0, 0.0),
    series=(series, masks),
    how_to_get=_CHAOS_WHERE,
    layout=f'ROOT/Train_Sets/MR/1/{series}/*.dcm with ROOT/Train_Sets/MR/1/{masks}/*.png, or NIfTI: '
    'ROOT/images/NAME.nii.gz with ROOT/labels/NAME.nii.gz (1 liver, 2 right kidney, 3 left kidney, 4 spleen)',
  )
  return png, dataclasses.replace(png, source='nifti', raw_ids=_single(_numbered(_CHAOS_MR_ORGANS)))


CHAOS_MR_T1IN, CHAOS_MR_T1IN_NIFTI = _chaos_mr('chaos_mr_t1in', 'T1DUAL/DICOM_anon/InPhase', 'T1DUAL/Ground')
CHAOS_MR_T1OUT, CHAOS_MR_T1OUT_NIFTI = _chaos_mr('chaos_mr_t1out', 'T1DUAL/DICOM_anon/OutPhase', 'T1DUAL/Ground')
CHAOS_MR_T2, CHAOS_MR_T2_NIFTI = _chaos_mr('chaos_mr_t2', 'T2SPIR/DICOM_anon', 'T2SPIR/Ground')

_ABDOMEN_IDS = dict(liver=1, kidney=2, spleen=3, pancreas=4)

ABDOMENCT1K = DatasetSpec(
  name='abdomenct1k',
  source='abdomenct1k',
  modality='CT',
  organs=tuple(_ABDOMEN_IDS),
  raw_ids=_single(_ABDOMEN_IDS),
  output_ids=_ABDOMEN_IDS,
  window_hu=PAPER_WINDOW,
  fractions=(6.0, 1.0, 3.0),
  defects={
    **{case: 'has no spleen' for case in _ids('Case_{:05d}', (219, 656))},
    **{
      case: 'has a false spacing of 1 x 1 x 1 mm'
      for case in _ids('Case_{:05d}', (78, *range(273, 279), *range(280, 287), 462, *range(574, 579)))
    },
  },
  how_to_get='Download AbdomenCT-1K (images and masks) by the links of https://github.com/JunMa11/AbdomenCT-1K and '
  'unpack all of it under one folder',
  layout='Case_00001_0000.nii.gz (images) and Case_00001.nii.gz (masks) in any folders under ROOT',
)

# The paper's CHAOS CT data with 4 organs were never released: a NIfTI folder of the user's with AbdomenCT-1K's ids.
CHAOS4 = DatasetSpec(
  name='chaos4',
  source='nifti',
  modality='CT',
  organs=tuple(_ABDOMEN_IDS),
  raw_ids=_single(_ABDOMEN_IDS),
  output_ids=_ABDOMEN_IDS,
  window_hu=PAPER_WINDOW,
  fractions=(3.0, 1.0, 0.0),
  how_to_get='CHAOS has no official four-organ CT labels: provide CT scans labelled 1 liver, 2 kidney, 3 spleen, '
  '4 pancreas',
  layout='ROOT/images/NAME.nii.gz with ROOT/labels/NAME.nii.gz',
)

FOLDER_WHERE = dict(
  how_to_get='Give the folder of your own scans',
  layout='ROOT/images/NAME.nii.gz with ROOT/labels/NAME.nii.gz (or nnU-Net: imagesTr/NAME_0000.nii.gz, '
  'labelsTr/NAME.nii.gz) and ROOT/dataset.json such as {"channel_names": {"0": "CT"}, '
  '"labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}',
)
