"""Data sets by name: the published ones, and a user's own folder."""

import pathlib
from collections.abc import Sequence

from afw_jax.data.sets import multi_organ, public
from afw_jax.data.sets.folder import read_folder_spec
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError, did_you_mean

_PUBLIC = {
  name: getattr(public, name.upper())
  for name in ('chaos_ct', 'chaos_mr_t1in', 'chaos_mr_t1out', 'chaos_mr_t2', 'chaos4', 'abdomenct1k')
}
_PUBLIC |= {spec.name: spec for spec in (multi_organ.AMOS, multi_organ.AMOS_MR, multi_organ.FLARE22)}
NAMES = ('synapse', *_PUBLIC, 'totalsegmentator', 'folder')


def get_spec(name: str, root: str | None = None, *, organs: Sequence[str] = (), overlap: str = 'error') -> DatasetSpec:
  """Looks up a data set in the layout found at `root`.

  Synapse in TransUNet's layout and CHAOS as NIfTI folders have other ids in their label files than the files of the
  challenges; organs and classes are the same.

  Args:
    name: one of `NAMES`; 'folder' is a user's own data set, described by ROOT/dataset.json.
    root: folder of the data set; None: the layout of the challenge.
    organs, overlap: of 'totalsegmentator', as in `multi_organ.totalsegmentator`.

  Returns:
    A `DatasetSpec`.

  Raises:
    InputError: unknown name, or an unusable dataset.json.
  """
  if name not in NAMES:
    raise InputError(f'data set {name!r}', 'is not known', f'{did_you_mean(name, NAMES)}Use one of {", ".join(NAMES)}')
  if name == 'totalsegmentator':
    return multi_organ.totalsegmentator(organs, overlap)
  if organs:
    what = f'is given, but the organs of {name} are those of its label maps'
    raise InputError('data.organs', what, 'Leave it empty: only totalsegmentator has masks to choose from.')
  if overlap != 'error':
    what = f'is {overlap!r}, but the organs of {name} are in one label map and cannot overlap'
    raise InputError('data.overlap', what, "Leave it at 'error': only totalsegmentator has masks that may overlap.")
  if name == 'folder':
    if root is None:
      raise InputError("data set 'folder'", 'needs a path', 'Give the folder that holds dataset.json')
    return read_folder_spec(root)
  has = lambda *folders: root is not None and any((pathlib.Path(root) / f).is_dir() for f in folders)
  if name == 'synapse':
    return public.SYNAPSE_TRANSUNET if has('train_npz', 'test_vol_h5') else public.SYNAPSE_BTCV
  spec = _PUBLIC[name]
  if spec.source in ('chaos_ct', 'chaos_mr') and has('images', 'imagesTr'):
    return getattr(public, f'{name.upper()}_NIFTI')
  return spec
