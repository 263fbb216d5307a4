"""Anatomy of the synthetic abdomen: positions and sizes of the tissues in mm, and their intensities in HU.

Body coordinates in mm: x towards the patient's Left, y towards Posterior, z towards Superior; the origin is on the axis
of the body at the level of the pancreas. Sizes and positions approximate those of adults in portal-venous CT.
"""

import numpy as np
from scipy.interpolate import CubicSpline

ORGANS = ('aorta', 'gallbladder', 'left_kidney', 'right_kidney', 'liver', 'pancreas', 'spleen', 'stomach')
# tissue: (mean HU, half of the range over patients)
HU = {
  'air': (-1000, 0),
  'lung': (-850, 30),
  'fat': (-100, 8),
  'muscle': (60, 6),
  'skin': (40, 0),
  'bone': (450, 60),
  'marrow': (180, 40),
  'disc': (85, 8),
  'canal': (25, 5),
  'vein': (132, 8),
  'bowel_wall': (70, 10),
  'bowel': (25, 15),
  'gas': (-900, 40),
  'couch': (-200, 60),
  'heart': (135, 10),
  'sinus': (-40, 20),
  'liver': (110, 10),
  'liver_vessel': (150, 12),
  'spleen': (122, 10),
  'cortex': (182, 12),
  'medulla': (150, 12),
  'aorta': (168, 12),
  'pancreas': (90, 8),
  'gallbladder': (10, 7),
  'gallbladder_wall': (60, 8),
  'stomach_wall': (65, 8),
  'stomach': (25, 15),
}
# tubular organs: (points (x, y, z) of the centre line, radii at these points), in mm
TUBES = {
  'aorta': ([(2, 14, -120), (4, 13, -60), (6, 12, 0), (8, 12, 60), (14, 24, 150)], [8.5, 9, 10, 11, 12]),
  'cava': ([(-18, 16, -120), (-19, 15, -50), (-21, 10, 20), (-18, -2, 90), (-14, -8, 130)], [10, 11, 12, 12, 11]),
  'portal': ([(-8, -12, 4), (-30, -18, 24), (-56, -8, 40)], [7, 7, 5]),
  'splenic_vein': ([(86, 12, 34), (48, -4, 24), (18, -15, 14), (-8, -12, 4)], [4, 4.5, 5, 6]),
  'oesophagus': ([(10, 0, 150), (14, 0, 110), (34, -4, 84)], [8, 8, 9]),
  'stomach': ([(64, 14, 74), (66, -20, 42), (50, -46, 12), (18, -54, -8), (-18, -42, -6)], [35, 32, 27, 20, 13]),
  'duodenum': ([(-20, -42, -6), (-44, -24, -8), (-47, -8, -36), (-12, 2, -46), (22, -4, -34)], [12, 12, 11, 10, 10]),
  'pancreas': (
    [(-26, -10, -30), (-25, -14, -10), (-6, -27, 2), (20, -26, 10), (48, -14, 19), (80, 4, 32)],
    [13, 15, 10, 11, 11, 10],
  ),
  'gallbladder': ([(-38, -30, 8), (-44, -42, -10), (-50, -53, -32)], [8, 15, 17]),
  'colon': (
    [
      (-108, 8, -120),
      (-106, 2, -70),
      (-90, -42, -48),
      (-30, -68, -46),
      (35, -66, -36),
      (92, -34, -8),
      (112, 12, -40),
      (110, 16, -120),
    ],
    [23, 24, 22, 20, 19, 19, 18, 17],
  ),
}


def tube(p, points, radii):
  """Depth below the surface of a smooth tube.

  Args:
    p: (3, N) coordinates in mm.
    points: coordinates of the centre line, in mm.
    radii: of the tube at these points, in mm.

  Returns:
    (N,) depth in mm: negative outside, -inf far away.
  """
  t = np.linspace(0, len(points) - 1, 4 * (len(points) - 1) + 1)
  nodes = CubicSpline(np.arange(len(points)), np.column_stack([points, radii]))(t).astype(np.float32)
  low, high = (nodes[:, :3] - nodes[:, 3:]).min(0) - 3, (nodes[:, :3] + nodes[:, 3:]).max(0) + 3
  near = np.flatnonzero((p[2] > low[2]) & (p[2] < high[2]))
  for axis in (0, 1):
    along = p[axis, near]
    near = near[(along > low[axis]) & (along < high[axis])]
  q, best = p[:, near], np.full(near.size, -np.inf, np.float32)
  for a, b in zip(nodes[:-1], nodes[1:]):
    d = b[:3] - a[:3]
    s = np.clip((d @ q - d @ a[:3]) / (d @ d), 0, 1)
    gap = q - a[:3, None] - s * d[:, None]
    best = np.maximum(best, a[3] + s * (b[3] - a[3]) - np.sqrt(np.einsum('ij,ij->j', gap, gap)))
  depth = np.full(p.shape[1], -np.inf, np.float32)
  depth[near] = best
  return depth


def ellipsoid(p, centre, semi, tilt_deg=(0, 0, 0)):
  """Approximate depth below the surface of a tilted ellipsoid.

  Args:
    p: (3, N) coordinates in mm.
    centre: (x, y, z) in mm.
    semi: the three semi-axes in mm.
    tilt_deg: rotation about the x, y and z axes.

  Returns:
    (N,) depth in mm, negative outside.
  """
  turn = np.eye(3)
  for axis, angle in enumerate(np.deg2rad(tilt_deg)):
    i, j = [k for k in range(3) if k != axis]
    r = np.eye(3)
    r[i, i] = r[j, j] = np.cos(angle)
    r[i, j], r[j, i] = -np.sin(angle), np.sin(angle)
    turn = turn @ r
  q = (turn / np.asarray(semi, float)[:, None]).astype(np.float32) @ (p - np.asarray(centre, np.float32)[:, None])
  return (1 - np.sqrt(np.einsum('ij,ij->j', q, q))) * np.float32(min(semi))


def draw(rng, p, texture):
  """Draws one patient.

  Args:
    rng: numpy Generator for intensities, and for sizes, positions and tilts of the organs.
    p: (3, N) float32 body coordinates (x, y, z) of the voxels in mm.
    texture: (3, N) float32 smooth random fields of unit standard deviation, for inhomogeneous tissue.

  Returns:
    ((N,) float32 HU, (N,) uint8 labels: 0 background, i = ORGANS[i - 1]).
  """
  x, y, z = p
  level = {name: mean + rng.uniform(-spread, spread) for name, (mean, spread) in HU.items()}
  hu = np.full(p.shape[1], level['air'], np.float32)
  label = np.zeros(p.shape[1], np.uint8)

  def paint(mask, tissue, organ=None):
    hu[mask] = level[tissue] if isinstance(tissue, str) else tissue[mask] if np.ndim(tissue) else tissue
    label[mask] = ORGANS.index(organ) + 1 if organ else 0

  def varied(points, radii, move=4.0, size=0.08):
    points = np.array(points, float) + rng.normal(0, move, 3) + rng.normal(0, move / 2, (len(points), 3))
    return points, np.array(radii) * np.clip(rng.normal(1, size), 1 - 2 * size, 1 + 2 * size)

  def organ(name, **how):
    return tube(p, *varied(*TUBES[name], **how))

  def blob(centre, semi, tilt=(0, 0, 0), move=4.0, size=0.06, tilt_range=7.0):
    scale = np.clip(rng.normal(1, size), 1 - 2 * size, 1 + 2 * size) * np.clip(rng.normal(1, size / 2, 3), 0.94, 1.06)
    return ellipsoid(p, centre + rng.normal(0, move, 3), semi * scale, tilt + rng.uniform(-tilt_range, tilt_range, 3))

  def hollow(depth, wall_mm, wall, content, gas_level, inside, name=None):
    paint((depth > 0) & inside, wall, name)
    lumen = (depth > wall_mm) & inside
    paint(lumen, content, name)
    paint(lumen & (y < gas_level), 'gas', name)  # the patient lies on the back: gas rises to the front

  def shell(half_x, half_y):
    return 1 - ((np.abs(x) / half_x) ** 2.3 + (np.abs(y) / half_y) ** 2.3)

  # body: skin, fat, muscle wall with ribs, and the abdominal cavity with its fat
  fat = rng.uniform(6, 24)
  body, wall, cavity = shell(149 + fat, 98 + 0.85 * fat), shell(149, 98), shell(136, 85)
  paint(np.abs(y - 106 - 0.85 * fat - 8 + 0.0009 * x * x) < 5, 'couch')
  paint(body > 0, 'skin')
  paint(shell(146.5 + fat, 95.5 + 0.85 * fat) > 0, level['fat'] + 12 * texture[0])
  paint(wall > 0, 'muscle')
  inside = cavity > 0
  paint(inside, level['fat'] + 12 * texture[1])
  rib = np.abs((z - 0.5 * y + rng.uniform(0, 27)) % 27 - 13.5)
  rib = np.where((z - 0.5 * y > -45) & (np.abs(x) > 32), rib, np.inf)
  paint((rib < 6) & (shell(146, 95) > 0) & (shell(138, 87) < 0), 'bone')
  paint((rib < 3.5) & (shell(144, 93) > 0) & (shell(140, 89) < 0), 'marrow')

  # diaphragm: lungs and heart above its two domes, the abdomen below
  top = rng.uniform(88, 104)
  domes = [
    height - 45 * ((x - centre) / 75) ** 2 - 22 * (y / 75) ** 2 - 38 * np.clip((y - 12) / 70, 0, None) ** 2
    for height, centre in ((top, -62), (top - 12, 66))
  ]
  diaphragm = np.maximum(*domes)
  below = inside & (z < diaphragm - 2)
  paint(inside & (z > diaphragm), 'lung')
  paint(inside & (z > diaphragm) & ((x - 6) ** 2 / 32**2 + (y - 14) ** 2 / 42**2 < 1), 'fat')  # mediastinum
  paint(inside & (np.abs(z - diaphragm) < 2), 'muscle')
  paint((blob((24, -36, top + 28), (62, 42, 38)) > 0) & inside, 'heart')
  paint(organ('oesophagus', move=2) > 0, 'bowel_wall')

  # bowel (not labelled): loops of small bowel, then the colon with inhomogeneous content
  free = below & (z < 20)
  for _ in range(16):
    start = np.array([rng.uniform(-85, 90), rng.uniform(-68, 5), rng.uniform(-125, -48)])
    path = start + np.cumsum(rng.uniform(-26, 26, (4, 3)) * (1, 0.7, 0.6), axis=0)
    gas = start[1] - rng.uniform(-2, 30)
    hollow(tube(p, path, rng.uniform(10, 14) * np.ones(4)), 3, 'bowel_wall', 'bowel', gas, free)
  hollow(organ('colon', move=6), 3, 'bowel_wall', 40 + 60 * texture[2], -58 + rng.uniform(-20, 10), below)

  # psoas and back muscles
  for side in (-1, 1):
    paint((blob((side * 36, 72, 0), (33, 22, 900), move=1, tilt_range=0) > 0) & (wall > 0), 'muscle')
    psoas = np.array([(side * 24, 42, 10), (side * 34, 42, -40), (side * 44, 38, -125)])
    paint(tube(p, psoas, [5, 16, 22]) > 0, 'muscle')

  # solid organs
  liver = np.maximum(blob((-72, -2, 36), (63, 78, 72), (0, 8, 0)), blob((4, -46, 54), (74, 31, 36), (0, -12, 10)))
  liver = (liver > 0) & below
  paint(liver, level['liver'] + 4 * texture[0], 'liver')
  for _ in range(7):
    end = np.array([rng.uniform(-120, -10), rng.uniform(-60, 55), rng.uniform(-10, 95)])
    vessel = tube(p, [(-45, -5, 45), (np.array([-45, -5, 45]) + end) / 2 + rng.normal(0, 8, 3), end], [4.5, 3.5, 2.5])
    paint((vessel > 0) & liver, 'liver_vessel', 'liver')
  paint((blob((106, 34, 32), (31, 52, 53), (10, 0, 20)) > 0) & below, level['spleen'] + 3 * texture[1], 'spleen')
  hollow(
    organ('stomach', move=5, size=0.12),
    4,
    'stomach_wall',
    level['stomach'] + 15 * texture[2],
    rng.uniform(-70, -42),
    below,
    'stomach',
  )
  hollow(organ('duodenum'), 3, 'bowel_wall', 'bowel', rng.uniform(-60, -40), below)
  for name, side, low in (('left_kidney', 1, 2), ('right_kidney', -1, -12)):
    position = np.array((side * 65, 40, low)) + rng.normal(0, 3.5, 3)
    tilt = np.array((-6, side * 9, side * -20))
    paint((ellipsoid(p, position, (33, 32, 62), tilt) > 0) & below, 'fat')
    kidney = blob(position, (27, 26, 54), tilt, move=0)
    paint(kidney > 0, 'cortex', name)
    paint((kidney > 7) & (texture[0] + texture[1] > -0.9), 'medulla', name)
    paint(blob(position + (-side * 16, -6, 0), (15, 10, 21), move=1.5) > 0, 'sinus')

  # spine
  phase = np.abs((z + rng.uniform(0, 34)) % 34 - 17)  # 0 in the middle of a vertebra, 17 in that of a disc
  bony = phase < 13
  column = 1 - np.sqrt((x / 23) ** 2 + ((y - 43) / 18) ** 2)
  paint(column > 0, 'disc')
  paint((column > 0) & bony, 'bone')
  paint((column > 0.14) & (phase < 11), 'marrow')
  paint(((x / 17) ** 2 + ((y - 67) / 13) ** 2 < 1) & bony, 'bone')
  paint((np.abs(x) < 4.5) & (y > 70) & (y < 98) & (phase < 10), 'bone')
  paint((np.abs(x) < 40) & (np.abs(y - 64) < 5) & (phase < 6), 'bone')
  paint((x / 10) ** 2 + ((y - 67) / 8) ** 2 < 1, 'canal')

  # vessels, pancreas and gallbladder
  paint(organ('cava', move=2) > 0, 'vein')
  paint((organ('portal', move=2) > 0) | (organ('splenic_vein', move=2) > 0), 'vein')
  paint(organ('pancreas', move=4, size=0.1) > 0, level['pancreas'] + 10 * texture[2], 'pancreas')
  gallbladder = organ('gallbladder', move=3, size=0.12)
  paint(gallbladder > 0, 'gallbladder_wall', 'gallbladder')
  paint(gallbladder > 1.5, 'gallbladder', 'gallbladder')
  paint(organ('aorta', move=2) > 0, 'aorta', 'aorta')
  return hu, label
