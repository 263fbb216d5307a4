"""Selection: the cases of a data set that a run uses, their split, and the intensity window of each.

A store holds prepared cases; everything here depends on the options of a run and is computed from the index of the
store. Runs that differ in window, split or number of cases share one store.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from afw_jax.data.sets.case_files import abbreviate, normal_name
from afw_jax.data.sets.given_folds import FILE, split_given
from afw_jax.data.sets.split import parse_fold, split_cases, split_fold
from afw_jax.data.sets.window import Windows, recorded_window, resolve_windows
from afw_jax.errors import InputError, InputErrors

_WITHOUT = {
  'train': 'nothing to train on',
  'val': 'the last checkpoint is used, since none can be chosen as the best',
  'test': 'scores can only be computed on the validation cases',
}


@dataclasses.dataclass(frozen=True)
class SelectionOptions:
  """The options of a run that choose and use prepared cases, and change none.

  Attributes:
    window: intensity window: None (the default of the data set), 'paper', 'transunet', 'percentile' or (low, high); see
      `window.resolve_windows`, also for one for each channel.
    fractions: of (train, val, test) for cases whose part is neither published nor given; None: the default of the data
      set. If given, they also divide a published train part into train and val where no val part is published.
    seed: of the split and the folds, and of the draw if `cases` is a number.
    cases: ids, or the number of cases to draw; None: all.
    keep_defective: also use cases with known defects.
    fold: 'K/N' holds out the K-th of N folds as the val part: a given one (`given_folds`), or one that is dealt
      (`split.split_fold`); '': no folds.
  """

  window: str | Sequence | None = None
  fractions: Sequence[float] | None = None
  seed: int = 0
  cases: Sequence[str] | int | None = None
  keep_defective: bool = False
  fold: str = ''

  def __post_init__(self):
    parse_fold(self.fold)
    if isinstance(self.cases, int) and self.cases < 1:
      raise InputError(
        f'cases {self.cases}', 'is not a number of cases', 'Give a positive number, a list of ids, or None'
      )


@dataclasses.dataclass(frozen=True)
class Choice:
  """What `SelectionOptions` choose from the listing of a data set.

  Attributes:
    splits: 'train', 'val' and 'test' -> sorted case ids.
    window: (low, high), or 'percentile' of each scan; of several channels one for each.
    excluded: case id -> reason.
    notes: remarks for the user.
    fold: that is held out, as in `SelectionOptions`.
  """

  splits: dict[str, list[str]]
  window: Windows
  excluded: dict[str, str]
  notes: list[str]
  fold: str

  @property
  def ids(self) -> list[str]:
    """All chosen case ids, sorted."""
    return sorted(case_id for ids in self.splits.values() for case_id in ids)


@dataclasses.dataclass(frozen=True)
class Selection(Choice):
  """A choice of prepared cases.

  Attributes:
    windows: case id -> (low, high) of its intensity window, or one for each of several channels.
    contents: case id -> `store.content_digest` of the prepared case.
  """

  windows: dict[str, tuple]
  contents: dict[str, str]


def choose(listing: Mapping, options: SelectionOptions) -> Choice:
  """Chooses and splits cases of a data set, prepared or not.

  Args:
    listing: of the data set, from `preparation.listing.make_listing` or the index of a store.
    options: of the run.

  Returns:
    A `Choice`; it depends on the listing and the options only.

  Raises:
    InputError: no usable case, unknown case ids, an invalid window or fractions, or more folds than subjects.
  """
  window = window_of(listing, options.window)
  scans = {case_id: scan for case_id, scan in sorted(listing['scans'].items()) if scan['labelled']}
  usable, excluded, notes = _usable(listing, scans, options.keep_defective)
  ids = _drawn(usable, options)
  if not ids:
    raise InputError(
      f'data set {listing["name"]}', 'has no usable labelled case', f'Expected layout: {listing["layout"]}'
    )
  absent = set(listing['published']) - set(usable)
  if absent and options.cases is None:
    notes.append(f'{len(absent)} of the {len(listing["published"])} published cases are missing')
  cases = [(i, scans[i]['subject'], scans[i]['part']) for i in ids]
  fractions = listing['fractions'] if options.fractions is None else options.fractions
  given = {case_id for case_id in ids if scans[case_id]['part'] == 'train'}
  folds, fold = listing.get('folds', ()), parse_fold(options.fold)
  if fold:
    if folds:
      splits = split_given(cases, folds, fold, drawn=options.cases is not None)
      used = {case_id for part in splits.values() for case_id in part}
      excluded |= {case_id: f'not in fold {options.fold} of {FILE}' for case_id in ids if case_id not in used}
    else:
      splits = split_fold(cases, fractions, options.seed, fold)
    dealt = len(splits['train']) + len(splits['val'])
    notes.append(f'fold {fold.number} of {fold.count}: {len(splits["val"])} of {dealt} cases are held out (val)')
  else:
    if folds:
      notes.append(f'{FILE} has {len(folds)} folds, which are not used: data.fold=1/{len(folds)} holds out the first')
    resplit = options.fractions is not None and not listing.get('explicit_val')
    splits = split_cases(cases, fractions, options.seed, resplit_train=resplit)
    if moved := len(given & set(splits['val'])):
      notes.append(f'{moved} of the {len(given)} given training cases are used for validation (data.fractions)')
  if splits['val'] or splits['test']:
    notes += [f'no {part} part: {consequence}' for part, consequence in _WITHOUT.items() if not splits[part]]
  else:
    notes.append('no val and no test part: the last checkpoint is used, and nothing can be scored')
  return Choice(splits, window, excluded, notes, options.fold)


def select(index: Mapping, options: SelectionOptions) -> Selection:
  """Selects prepared cases of a store for a run.

  Args:
    index: of the store.
    options: of the run.

  Returns:
    A `Selection`.

  Raises:
    InputError: as `choose`; or a chosen case is not in the store.
    InputErrors: the same scan under two case ids.
  """
  choice = choose(index['listing'], options)
  missing = [case_id for case_id in choice.ids if case_id not in index['cases']]
  if missing:
    raise InputError(
      f'store of {index["name"]}',
      f'{len(missing)} of the {len(choice.ids)} cases of this run are not prepared ({abbreviate(missing)})',
      'Run --mode=prepare',
    )
  cases = {case_id: index['cases'][case_id] for case_id in choice.ids}
  if leaks := find_leaks(cases, choice.splits):
    raise InputErrors(leaks) if len(leaks) > 1 else leaks[0]
  notes = choice.notes + notes_on_cases(index['organs'], cases, choice.splits['train'])
  windows = windows_of(index, choice.ids, choice.window)
  contents = {case_id: case['content_sha256'] for case_id, case in cases.items()}
  return Selection(choice.splits, choice.window, choice.excluded, notes, choice.fold, windows, contents)


def scored_split(splits: Mapping[str, Sequence[str]], wanted: str) -> str | None:
  """The split whose cases are scored.

  Args:
    splits: 'train', 'val' and 'test' -> case ids.
    wanted: the one that was asked for.

  Returns:
    `wanted`, or 'val' in place of a 'test' without cases; None if that has no case either.
  """
  candidates = ('test', 'val') if wanted == 'test' else (wanted,)
  return next((split for split in candidates if splits[split]), None)


def find_leaks(cases: Mapping[str, Mapping], splits: Mapping[str, Sequence[str]]) -> list[InputError]:
  """An error for every scan that occurs under several case ids, recognised by its decoded voxels."""
  part_of = {case_id: part for part, ids in splits.items() for case_id in ids}
  groups = defaultdict(list)
  for case_id, case in cases.items():
    groups[case['voxels_sha256']].append(case_id)
  return [
    InputError(
      cases[other]['source']['image'],
      f'is the same scan as {cases[first]["source"]["image"]} (cases {first} in {part_of[first]}, '
      f'{other} in {part_of[other]})',
      'Remove one of them, then run --mode=prepare',
    )
    for first, *others in groups.values()
    for other in others
  ]


def _usable(listing: Mapping, scans: Mapping, keep_defective: bool) -> tuple[list[str], dict[str, str], list[str]]:
  """(usable case ids, excluded ones with the reason, notes)."""
  excluded, notes = {}, list(listing.get('notes', ()))
  unlabelled = len(listing['scans']) - len(scans)
  if unlabelled:
    said = 'scan without labels is' if unlabelled == 1 else 'scans without labels are'
    notes.append(f'{unlabelled} {said} not used; to predict: --mode=predict')
  declared = listing['num_training']
  if declared is not None and declared not in (len(scans), sum(scan['part'] != 'test' for scan in scans.values())):
    notes.append(f'dataset.json declares numTraining {declared}, but there are {len(scans)} labelled cases')
  for case_id, scan in scans.items():
    if listing['explicit_split'] and scan['part'] is None:
      excluded[case_id] = 'not in the "split" of dataset.json'
    if scan['defect'] and not keep_defective:
      excluded[case_id] = f'known defect: it {scan["defect"]}'
    elif scan['defect']:
      notes.append(f'{case_id} is used although it {scan["defect"]}')
  return [case_id for case_id in scans if case_id not in excluded], excluded, notes


def _drawn(usable: Sequence[str], options: SelectionOptions) -> list[str]:
  """The usable cases that the options ask for."""
  if options.cases is None:
    return list(usable)
  if isinstance(options.cases, int):
    if options.cases > len(usable):
      raise InputError(f'cases {options.cases}', f'there are only {len(usable)} usable cases', 'Ask for fewer')
    digest = lambda i: hashlib.sha256(f'choose/{options.seed}/{i}'.encode(errors='surrogateescape')).hexdigest()
    return sorted(sorted(usable, key=digest)[: options.cases])
  wanted = set(map(normal_name, options.cases))
  unknown = sorted(wanted - set(usable))
  if unknown:
    raise InputError(
      f'cases {abbreviate(unknown)}', 'are not usable cases of the data set', f'Usable are {abbreviate(usable)}'
    )
  return sorted(wanted)


def notes_on_cases(organs: Sequence[str], cases: Mapping[str, Mapping], train: Sequence[str]) -> list[str]:
  """Remarks about the prepared cases, by what the index of a store has of each."""
  notes = [f'{case_id}: {note}' for case_id, case in cases.items() for note in case['notes']]
  for case_id, case in cases.items():
    lost = [organ for organ in organs if case['voxels'][organ] and not case['working_voxels'][organ]]
    if lost:
      notes.append(f'{case_id}: no voxel of {", ".join(lost)} is left on the working grid')
  for organ in organs:
    if train and not any(cases[case_id]['voxels'][organ] for case_id in train):
      notes.append(f'{organ} is in no training case')
  return notes


def window_of(listing: Mapping, window: str | Sequence | None) -> Windows:
  """The intensity window of a run, as in a `Choice`, for its option `window` and the listing of the data set."""
  of = {key: listing[key] for key in ('in_hu', 'channels') if key in listing}
  return resolve_windows(window, listing['window'], dataset=listing['name'], **of)


def windows_of(index: Mapping, ids: Sequence[str], window: Windows) -> dict[str, tuple]:
  """Case id -> (low, high) of its intensity window or one for each channel, for `window` as in a `Choice`."""
  return {case_id: recorded_window(index['cases'][case_id]['percentile_window'], window) for case_id in ids}
