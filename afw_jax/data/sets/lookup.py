"""Data sets by name: the published ones, and a user's own folder."""

import pathlib

from afw_jax.data.sets import public
from afw_jax.data.sets.folder import read_folder_spec
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError, did_you_mean

_PUBLIC = {
  name: getattr(public, name.upper())
  for name in ('chaos_ct', 'chaos_mr_t1in', 'chaos_mr_t1out', 'chaos_mr_t2', 'chaos4', 'abdomenct1k')
}
NAMES = ('synapse', *_PUBLIC, 'folder')


def get_spec(name: str, root: str | None = None) -> DatasetSpec:
  """Looks up a data set in the layout found at `root`.

  Synapse in TransUNet's layout and CHAOS as NIfTI folders have other ids in their label files than the files of the
  challenges; organs and classes are the same.

  Args:
    name: one of `NAMES`; 'folder' is a user's own data set, described by ROOT/dataset.json.
    root: folder of the data set; None: the layout of the challenge.

  Returns:
    A `DatasetSpec`.

  Raises:
    InputError: unknown name, or an unusable dataset.json.
  """
  if name not in NAMES:
    raise InputError(f'data set {name!r}', 'is not known', f'{did_you_mean(name, NAMES)}Use one of {", ".join(NAMES)}')
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
