"""Measures of cases as `measures.of_case` gives them, without files."""

ORGANS = ('liver', 'left_kidney', 'right_kidney')


def organ(volume_ml, x_mm=0.0, **more):
  return {
    'voxels': round(volume_ml * 100),
    'volume_ml': volume_ml,
    'centroid_ras_mm': (x_mm, 0.0, 0.0),
    'touches_border': False,
    'components': 1,
    'second_share': 0.0,
  } | more


def case(number=0, **organs):
  """A usual case; `number` makes it differ a little from others."""
  usual = {
    'liver': organ(1500 + 20 * number, 60.0),
    'left_kidney': organ(150 + number, -70.0),
    'right_kidney': organ(150 - number, 70.0),
  }
  return {
    'shape': [100 + number, 512, 512],
    'spacing_mm': [2.5, 0.75 + 0.005 * number, 0.75 + 0.005 * number],
    'extent_mm': [250.0, 384.0, 384.0],
    'percentiles': [-50.0 - number, 100.0 + number, 250.0 + number],
    'organs': usual | organs,
    'absent': [],
    'label_sha256': str(number),
  }


def several(n=8):
  return {f'c{i}': case(i) for i in range(n)}
