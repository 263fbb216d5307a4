"""The numbers that the paper published, to stand beside those of one's own runs.

Guo Y., Lin J., Pan J., Jiang T., Segmentation of Abdominal CT images with Asymmetric Focal Weighted Dice loss,
Intelligent Computer and Applications 14(7):20-28, 2024, doi 10.20169/j.issn.2095-2163.240703, Tables 1 to 6.

DSC in percent, the mean over cases and organs, and that of single organs. The distance that the paper calls HD is
given in mm there; the code that its authors released computes the 95th percentile (HD95), in voxels of the resized
grid. So it is kept under the name 'hd95', which is what it is nearest to.
"""

from collections.abc import Mapping

Published = Mapping[str, float]  # 'dsc', 'hd95' or the name of an organ -> percent, or mm

CONVENTION = (
  "The paper's numbers are single runs as it prints them. Its distance, called HD and given in mm, stands beside our "
  'HD95: the code that its authors released computes the 95th percentile, in voxels of the resized grid, and counts '
  'missed organs in another way.'
)
_SYNAPSE = ('aorta', 'left_kidney', 'gallbladder', 'right_kidney', 'liver', 'pancreas', 'spleen', 'stomach')
_ABDOMEN = ('liver', 'kidney', 'pancreas', 'spleen')


def _row(values: str, organs: tuple[str, ...] = (), *, distance: bool = True) -> Published:
  names = ('dsc', *(('hd95',) if distance else ()), *organs)
  return dict(zip(names, map(float, values.split()), strict=True))


# Loss -> numbers. Of Focal + Dice in Table 1 the organs have a mean of 78.00, and 77.92 is printed.
TABLE1 = {
  'focal_dice': _row('77.92 28.97 87.46 83.01 63.01 79.58 93.45 56.42 86.15 74.92', _SYNAPSE),
  'ce_gd': _row('75.60 36.66 86.94 79.17 58.07 76.37 91.63 57.81 84.19 70.61', _SYNAPSE),
  'ce_dice': _row('77.46 33.31 88.54 81.41 67.93 72.28 93.26 58.71 82.74 74.85', _SYNAPSE),
  'ce_afw': _row('79.47 28.41 89.00 84.47 64.73 81.24 94.41 58.07 86.72 77.13', _SYNAPSE),
}
TABLE2 = {
  'focal_dice': _row('84.84 28.63 94.27 88.28 65.49 91.30', _ABDOMEN),
  'ce_gd': _row('84.86 35.19 94.02 89.51 65.96 89.92', _ABDOMEN),
  'ce_dice': _row('83.18 32.86 94.10 88.81 61.46 88.34', _ABDOMEN),
  'ce_afw': _row('85.93 24.88 95.14 91.34 65.34 91.90', _ABDOMEN),
}
# Data set -> (without, with) the weights that are learned by uncertainty.
TABLE3 = {
  'synapse': (_row('78.72 32.91'), _row('79.47 28.41')),
  'abdomenct1k': (_row('85.28 24.84'), _row('85.93 24.88')),
}
# Data set -> (symmetric, asymmetric).
TABLE4 = {
  'synapse': (_row('78.07 33.15'), _row('79.47 28.41')),
  'abdomenct1k': (_row('85.48 27.74'), _row('85.93 24.88')),
}
# Data set -> network -> (CE + Dice, CE + AFW-Dice).
TABLE5 = {
  'synapse': {
    'unetpp': (_row('77.84 30.76'), _row('79.14 26.59')),
    'transunet': (_row('77.79 27.78'), _row('80.24 21.81')),
    'vatransunet': (_row('79.11 31.54'), _row('82.76 18.66')),
  },
  'abdomenct1k': {
    'unetpp': (_row('84.05 38.83'), _row('86.10 29.16')),
    'transunet': (_row('84.12 24.52'), _row('85.50 17.16')),
    'vatransunet': (_row('87.51 21.48'), _row('88.39 14.45')),
  },
}
# Network -> (CE + Dice, CE + AFW-Dice).
TABLE6 = {
  'unetr': (
    _row('76.41 92.00 83.73 42.88 87.03', _ABDOMEN, distance=False),
    _row('78.30 93.70 88.21 46.07 85.21', _ABDOMEN, distance=False),
  ),
  'unetrpp': (
    _row('87.70 94.60 93.82 69.00 93.36', _ABDOMEN, distance=False),
    _row('88.01 96.08 94.87 69.17 91.90', _ABDOMEN, distance=False),
  ),
}
