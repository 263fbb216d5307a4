"""Sentences that tables need beside them: the rules of a metric convention, and what a split or few cases mean."""

from collections.abc import Mapping, Sequence

# One entry for each convention of `metrics.UNITS`.
RULES = {
  'strict': (
    'Distances use the spacing of each scan. An organ that was missed, and one predicted where there is none, count '
    'with DSC 0, NSD 0 and the diagonal of the image as distance. An organ that is neither in the truth nor predicted '
    'is skipped.'
  ),
  'transunet': (
    "TransUNet's: distances in voxels, spacing ignored. A missed organ counts with DSC 0 and distance 0 (a perfect "
    'distance), a falsely predicted one with DSC 1 and distance 0, an organ in neither with DSC 0 and distance 0.'
  ),
  'unetrpp': (
    "UNETR++'s: distances in voxels, spacing ignored. A missed or falsely predicted organ counts with DSC 0 and "
    'distance 0, an organ in neither with DSC 1 and distance 0.'
  ),
  'monai': (
    "MONAI's: with spacing. An organ not in the truth has no DSC; one that is missed or falsely predicted has no HD95 "
    '(it drops out of the mean: see the counts) and an infinite HD.'
  ),
}
SPLITS = {
  'val': '**Validation split.** It also chose the checkpoint, so these scores are optimistic.',
  'train': (
    '**Training split.** The network was trained on these cases: the scores say how well it fits them, not how well '
    'it works on new ones.'
  ),
}
FEW_CASES = 12


_LAST = (
  '**Validation split.** The last checkpoint was scored, which these cases did not choose. Where they chose options of '
  'the training, the scores are optimistic all the same.'
)


def split_note(split: str, checkpoint: object) -> list[str]:
  """What it means that a split was scored, else nothing.

  Args:
    split: that was scored.
    checkpoint: 'best', 'last', or whatever is recorded.
  """
  if split == 'val' and checkpoint == 'last':
    return [_LAST]
  return [SPLITS[split]] if split in SPLITS else []


def fold_note(folds: Sequence[str], unfinished: Sequence[str] = ()) -> list[str]:
  """What the scores are of where a run is one fold of a cross-validation or several were pooled, else nothing.

  Args:
    folds: 'K/N' of each.
    unfinished: those of them whose training had not come to its end.
  """
  if not folds:
    return []
  count = folds[0].split('/')[1]
  if len(folds) == 1:
    return [f'**Fold {folds[0].split("/")[0]} of {count}.** The network was trained without the cases of this fold.']
  notes = [
    f'**Pooled over {count} folds.** Each case was scored once, by the network of the fold that was trained without it.'
  ]
  if unfinished:
    notes.append(
      f'**Not finished: fold {", ".join(unfinished)}.** Its training had not come to its end when it was scored.'
    )
  return notes


def caution(num_cases: int) -> list[str]:
  """A warning where the cases are too few for the confidence intervals, else nothing."""
  if num_cases >= FEW_CASES:
    return []
  return [
    f'**Only {num_cases} case(s).** Bootstrap intervals of so few cases are too narrow (a nominal 95 % covers about '
    '80 % with 4 cases, 88 % with 8): read them as a rough scale, and take no small difference as shown.'
  ]


def unusual(notes: Mapping[str, Sequence[str]]) -> list[str]:
  """A warning that lists the cases with notes on their scans, else nothing.

  Args:
    notes: case -> what is unusual about its scan.
  """
  if not any(notes.values()):
    return []
  rows = [f'- {case}: {note}' for case, found in notes.items() for note in found]
  return ['**Unusual scans.** Look at their label maps before you trust these scores.', '\n'.join(rows)]
