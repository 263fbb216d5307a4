"""A mask for each organ as one label map: overlaps as they are wanted, or an error that counts them."""

import numpy as np
import pytest
from dicom_series import refused
from tiny_dataset import geometry

from afw_jax.data.formats import organ_masks, volumes

SHAPE = (5, 6, 4)
ORGANS = ('liver', 'spleen', 'aorta')


def masks_of(n):
  """Three masks by the first voxels of the array: of them `n` are in the liver and the spleen, one in all three."""
  masks = np.zeros((3, *SHAPE), np.uint8)
  masks[0].flat[:10] = 1
  masks[1].flat[10 - n : 20] = 255
  masks[2].flat[[*([9] if n else []), *range(30, 35)]] = 1
  return masks


def write(folder, masks, names=ORGANS, **grid):
  folder.mkdir()
  for name, mask in zip(names, masks):
    volumes.write_label(folder / f'{name}.nii.gz', mask, geometry(mask.shape, **grid))
  return folder


def read(folder, organs=ORGANS, overlap='error'):
  return organ_masks.read_label(folder, organs, overlap)


def test_masks_become_one_label_map(tmp_path):
  folder = write(tmp_path / 'm', masks_of(0), axes='LPS')
  (folder / 'heart.nii.gz').write_bytes(b'no NIfTI, and not asked for')
  ids, grid, sha256, remarks = read(folder)
  wanted = np.zeros(SHAPE, np.uint8)
  wanted.flat[:10], wanted.flat[10:20], wanted.flat[30:35] = 1, 2, 3
  np.testing.assert_array_equal(ids, wanted)
  assert grid == volumes.read_label(folder / 'liver.nii.gz').geometry and remarks == []
  reordered, _, other, _ = read(folder, ('aorta', 'liver'))
  np.testing.assert_array_equal(reordered, np.select([wanted == 3, wanted == 1], [1, 2]))
  assert sha256 != other and sha256 == read(folder)[2]


def test_overlaps(tmp_path):
  folder = write(tmp_path / 'm', masks_of(3))
  said = r'm: masks overlap: liver and spleen \(3 voxels\), spleen and aorta \(1 voxels\)\. .*data.overlap'
  refused(folder, said, read=read)
  for overlap, wanted in (('first', (1, 1, 1, 2)), ('last', (2, 2, 3, 2))):
    ids, _, _, (remark,) = read(folder, overlap=overlap)
    assert tuple(ids.flat[7:11]) == wanted
    assert f'the {overlap} organ got the voxels: liver and spleen (3 voxels)' in remark
  assert tuple(read(folder, ORGANS[::-1], 'last')[0].flat[7:11]) == (3, 3, 3, 2)  # in the order that is asked for


@pytest.mark.parametrize(
  'mask, grid, match',
  [
    (np.zeros((5, 6, 3), np.uint8), {}, r'spleen.nii.gz: its shape \(5, 6, 3\) .* differs from that of .*liver.nii.gz'),
    (np.zeros(SHAPE, np.uint8), {'origin': (-19, 30, 5)}, r'spleen.nii.gz: .* a corner lies 0.8 voxels \(1 mm\) from'),
    (np.arange(120, dtype=np.uint8).reshape(SHAPE) % 3, {}, r'spleen.nii.gz: has the ids 1, 2, and a mask .* has one'),
  ],
)
def test_a_mask_that_does_not_fit(tmp_path, mask, grid, match):
  folder = write(tmp_path / 'm', masks_of(0))
  volumes.write_label(folder / 'spleen.nii.gz', mask, geometry(mask.shape, **grid))
  refused(folder, match, read=read)


def test_a_missing_and_a_damaged_mask(tmp_path):
  folder = write(tmp_path / 'm', masks_of(0))
  (folder / 'aorta.nii.gz').write_bytes((folder / 'aorta.nii.gz').read_bytes()[:-9])
  refused(folder, 'aorta.nii.gz', read=read)
  (folder / 'aorta.nii.gz').unlink()
  refused(folder, 'aorta.nii.gz', read=read)
