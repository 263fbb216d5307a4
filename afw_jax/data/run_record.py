"""What the checkpoints of a run record about its data: the cases, their split and their content.

A run that has begun keeps the split of its checkpoint, and is refused data that is no longer what it was trained on.
"""

import json
from collections.abc import Mapping, Sequence

from afw_jax.data.selection import Selection, find_leaks, windows_of
from afw_jax.data.sets.case_files import abbreviate
from afw_jax.errors import InputError, InputErrors

_DIGITS = 16  # of a SHA-256 in the record, which every checkpoint holds


def data_record(index: Mapping, selection: Selection) -> dict:
  """What the checkpoints of a run record about its data, as JSON.

  Args:
    index: of the store.
    selection: of the run.

  Returns:
    'name', 'modality', 'organs', 'output_ids', 'options' and 'window' of the data, 'splits' (part -> case ids), 'fold'
    ('' without folds), and for each case digests of its 'scans' (the voxels) and 'contents' (everything that is
    prepared).
  """
  window = json.loads(json.dumps(selection.window))
  digest = lambda key: {case_id: index['cases'][case_id][key][:_DIGITS] for case_id in selection.ids}
  return {
    **{key: index[key] for key in ('name', 'modality', 'organs', 'output_ids')},
    'window': window,
    'options': {**index['options'], 'window': window},
    'splits': selection.splits,
    'fold': selection.fold,
    'scans': digest('voxels_sha256'),
    'contents': digest('content_sha256'),
  }


def recorded_selection(index: Mapping, recorded: Mapping) -> Selection | None:
  """The selection of a run that has begun, whatever was added to its store since.

  Args:
    index: of the store.
    recorded: `data_record` in a checkpoint of the run.

  Returns:
    A `Selection`; None if the checkpoint has no splits (imported weights), or the store is of another data set.

  Raises:
    InputError: the store lacks some of the cases.
    InputErrors: the same scan is under two case ids by now.
  """
  splits = recorded['splits']
  if splits is None or recorded['name'] != index['name']:
    return None
  ids = [case_id for part in splits.values() for case_id in part]
  missing = sorted(set(ids) - index['cases'].keys())
  if missing:
    raise InputError(
      f'store of {index["name"]}',
      f'it lacks {len(missing)} of the {len(ids)} cases that this run has begun with ({abbreviate(missing)})',
      'Run --mode=prepare with the --workdir of this run. If this is another data set, give it another "name" in '
      'dataset.json',
    )
  if leaks := find_leaks({case_id: index['cases'][case_id] for case_id in ids}, splits):
    raise InputErrors(leaks) if len(leaks) > 1 else leaks[0]
  windows = windows_of(index, ids, recorded['window'])
  contents = {case_id: index['cases'][case_id]['content_sha256'] for case_id in ids}
  return Selection(dict(splits), recorded['window'], {}, [], recorded.get('fold', ''), windows, contents)


def differences(recorded: Mapping, now: Mapping, keys: Sequence[str]) -> dict[str, tuple]:
  """The keys in which two `data_record`s differ -> (recorded, now); what one of them leaves open (None) is equal."""
  plain = lambda value: {k: v for k, v in value.items() if k != 'format'} if isinstance(value, Mapping) else value
  found = {key: (recorded[key], now[key]) for key in keys if None not in (recorded[key], now[key])}
  return {key: (a, b) for key, (a, b) in found.items() if plain(a) != plain(b)}  # older records have the store's format


def changed_cases(recorded: Mapping, now: Mapping, parts: Sequence[str]) -> list[str]:
  """The cases of some parts of a run whose prepared content is not the recorded one.

  Args:
    recorded: `data_record` in a checkpoint of the run.
    now: `data_record` of the same cases now.
    parts: some of 'train', 'val' and 'test'.

  Returns:
    Their ids, sorted; empty if the checkpoint records no contents (imported weights, older versions).
  """
  before = recorded.get('contents') or {}
  ids = sorted(case_id for part in parts for case_id in now['splits'][part])
  return [case_id for case_id in ids if before.get(case_id, now['contents'][case_id]) != now['contents'][case_id]]


def check_folds(recorded: Mapping[str, Mapping]) -> None:
  """Checks that the folds of a cross-validation are of the same cases, each of which is held out once.

  Args:
    recorded: workdir of the run of each fold -> `data_record` in its checkpoint.

  Raises:
    InputError: runs have other cases or other scans or labels of a case, or a case is held out twice or never.
  """
  (where, first), *others = recorded.items()
  cure = 'Train all folds on the same data: those that began before it changed need a new --workdir.'
  for workdir, record in others:
    for parts in (('train', 'val'), ('test',)):
      now, before = ({case for part in parts for case in r['splits'][part]} for r in (record, first))
      if now != before:
        raise InputError(workdir, f'has other cases than {where}: {abbreviate(sorted(now ^ before))}', cure)
    contents = first['contents']
    if changed := sorted(case for case, content in record['contents'].items() if content != contents[case]):
      what = f'was trained with other scans or labels of {abbreviate(changed)} than {where}'
      raise InputError(workdir, what, cure)
  holder: dict[str, str] = {}
  for workdir, record in recorded.items():
    for case in record['splits']['val']:
      if case in holder:
        raise InputError(workdir, f'holds out case {case}, and so does {holder[case]}', cure)
      holder[case] = workdir
  if never := sorted(set(first['splits']['train']) - holder.keys()):
    raise InputError('--workdir', f'no fold holds out {abbreviate(never)}', cure)


def seen_scans(recorded: Mapping) -> dict[str, list[str]]:
  """'train' and 'val' -> digests of the scans that a network was trained and chosen with, also before it began.

  Args:
    recorded: `data_record` in its checkpoint, with 'seen_before' where its run started from the network of another.
  """
  before, splits, scans = recorded.get('seen_before') or {}, recorded['splits'] or {}, recorded.get('scans') or {}
  own = lambda part: (scans[case_id] for case_id in splits.get(part, ()) if case_id in scans)
  return {part: sorted({*before.get(part, ()), *own(part)}) for part in ('train', 'val')}


def seen_cases(record: Mapping, seen: Mapping[str, Sequence[str]], part: str) -> list[str]:
  """The cases of a part of a run that another network was trained with (for 'test': or chosen with).

  Args:
    record: `data_record` of the run.
    seen: `seen_scans` of the other network.
    part: 'val' or 'test'.
  """
  known = {digest for used in ('train', 'val')[: 2 if part == 'test' else 1] for digest in seen[used]}
  return sorted(case_id for case_id in record['splits'][part] if record['scans'][case_id] in known)


def trained_part(recorded: Mapping, index: Mapping, case_id: str) -> str | None:
  """The part that a case belonged to when a network was trained: by its scan, whatever its id now, or by its id.

  Of a network that started from that of another run, the other's training counts too.

  Args:
    recorded: `data_record` in the checkpoint of the network.
    index: of the store that the case is in.
    case_id: of the case.

  Returns:
    'train', 'val' or 'test'; 'none' for a case of no part; None where the splits are not recorded.
  """
  if recorded['splits'] is None:
    return None
  part_of = {known: part for part, ids in recorded['splits'].items() for known in ids}
  scans = {digest: part_of[known] for known, digest in (recorded.get('scans') or {}).items()}
  digest = index['cases'][case_id]['voxels_sha256'][:_DIGITS]
  part, before = scans.get(digest) or part_of.get(case_id) or 'none', recorded.get('seen_before') or {}
  if digest in before.get('train', ()):
    return 'train'
  return 'val' if digest in before.get('val', ()) and part not in ('train', 'val') else part
