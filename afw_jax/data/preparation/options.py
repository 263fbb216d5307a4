"""Options of a store: everything that its voxels depend on besides the source files."""

import dataclasses
import json
import os
from collections.abc import Sequence

from afw_jax.data import resample
from afw_jax.data.sets.lookup import get_spec
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError, did_you_mean

ORDERS = {'linear': 1, 'cubic': 3}


@dataclasses.dataclass(frozen=True)
class StoreOptions:
  """How the scans of a data set are resampled to the working grid.

  Attributes:
    dataset: name of the data set, one of `lookup.NAMES`.
    size: voxels of the working grid, (h, w) or (d, h, w); None: as the spacing gives.
    spacing_mm: target (z, y, x) spacing; None: that of the scan.
    fit: from the target spacing to the size by 'resize' (interpolation) or 'crop_pad' (centred).
    order: 'cubic' or 'linear' interpolation of the image; label maps are resampled with nearest neighbour.
    organs, overlap: of data sets with a mask for each organ, as in `lookup.get_spec`.

  Raises:
    InputError: an invalid option.
  """

  dataset: str
  size: Sequence[int | None] = (224, 224)
  spacing_mm: Sequence[float | None] = (None, 1.0, 1.0)
  fit: str = 'resize'
  order: str = 'cubic'
  organs: Sequence[str] = ()
  overlap: str = 'error'

  def __post_init__(self):
    if self.order not in ORDERS:
      hint = did_you_mean(self.order, ORDERS)
      raise InputError(f'order {self.order!r}', 'is not known', f"{hint}Use 'cubic' or 'linear'")
    resample.make_resampling((8, 8, 8), (1, 1, 1), size=self.size, spacing=self.spacing_mm, fit=self.fit)  # checks them

  def spec(self, root: str | os.PathLike | None = None) -> DatasetSpec:
    """The data set, in the layout found at `root`; raises as `lookup.get_spec`."""
    root = None if root is None else os.fspath(root)
    return get_spec(self.dataset, root, organs=self.organs, overlap=self.overlap)

  def grid(self) -> dict:
    """Size, spacing, fit and interpolation order, as JSON."""
    return {
      'size': [n if n is None else int(n) for n in self.size],
      'spacing_mm': [s if s is None else float(s) for s in self.spacing_mm],
      'fit': self.fit,
      'order': ORDERS[self.order],
    }

  def to_json(self, spec: DatasetSpec) -> dict:
    """'options' in the index of a store, as JSON.

    Args:
      spec: of the data set.
    """
    labels = {
      'modality': spec.modality,
      'organs': spec.organs,
      'source': spec.source,
      'raw_ids': dict(spec.raw_ids),
      'ignored_ids': spec.ignored_ids,
    }
    if spec.channels:  # not otherwise, so that stores without it keep their digest; so for the others
      labels['channels'] = spec.channels
    if spec.unlabelled_id is not None:
      labels['unlabelled_id'] = spec.unlabelled_id
    if spec.overlapping:
      labels['overlapping'] = spec.overlapping
    if spec.regions:
      labels['regions'] = [[name, [spec.labels[organ] for organ in organs]] for name, organs in spec.regions.items()]
    return json.loads(json.dumps(labels | self.grid()))
