"""What is usual among the training cases of a run: checkpoints keep it, and other scans are compared with it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from afw_jax.data import field_of_view
from afw_jax.data.selection import Selection
from afw_jax.data.sets import channels, intensities

_FEW = 3  # fewer other cases do not say what is usual


def usual_of_training(index: Mapping, selection: Selection) -> dict:
  """What is usual among the training cases of a run, as JSON.

  Args:
    index: of the store.
    selection: of the run.

  Returns:
    'intensities', see `intensities.usual_of`, of several channels one for each; and 'position', how far bodies reach
    beyond the working grid in the cases of which it cuts off no organ, see `field_of_view.placed`.
  """
  cases = {case_id: index['cases'][case_id] for case_id in selection.splits['train']}
  found = [_usual_of(channel, index, selection, cases) for channel in channels.of(index['options'])]
  return {
    'intensities': channels.joined(found),
    'position': field_of_view.usual_of([case['overhang'] for case in cases.values() if not case['cut_off']]),
  }


def _usual_of(channel: channels.Channel, index: Mapping, selection: Selection, ids: Iterable[str]) -> dict | None:
  """`intensities.usual_of` one channel of some cases."""
  return intensities.usual_of([_described(channel, index, selection, i) for i in ids], channel.in_hu)


def _described(channel: channels.Channel, index: Mapping, selection: Selection, case_id: str) -> tuple[dict, Sequence]:
  """(statistics, intensity window) of one channel of a case."""
  return channel.of(index['cases'][case_id]['intensities']), channel.of(selection.windows[case_id])


def overhang_of(record: Mapping) -> field_of_view.Usual | None:
  """How far bodies usually reach beyond the grid, from the data record of a checkpoint; None in one without it."""
  return (record.get('usual') or {}).get('position')


def notes_on(described: Any, window: Sequence, record: Mapping) -> list[str]:
  """What is unusual about the intensities of a scan for a trained network.

  Args:
    described: of the scan, from `intensities.describe_channels`.
    window: its intensity window, or one for each channel.
    record: of the data in the checkpoint; one without 'usual' leaves the rules that need none.

  Returns:
    Sentences without a full stop.
  """
  usual = (record.get('usual') or {}).get('intensities')
  return intensities.notes_on_channels(described, window, channels.of(record['options']), usual)


def notes_on_training(index: Mapping, selection: Selection) -> list[str]:
  """What is unusual about cases of a run among its own training cases, beside the notes that each case has by itself.

  Args:
    index: of the store.
    selection: of the run.

  Returns:
    '<case>: <note>' for each.
  """
  return [note for channel in channels.of(index['options']) for note in _notes_on_channel(channel, index, selection)]


def _notes_on_channel(channel: channels.Channel, index: Mapping, selection: Selection) -> list[str]:
  training, in_hu = set(selection.splits['train']), channel.in_hu
  of_all, found = _usual_of(channel, index, selection, training), []
  for case_id in selection.ids:
    described, usual = _described(channel, index, selection, case_id), of_all
    if case_id in training and of_all and intensities.is_outermost(*described, in_hu, of_all):
      usual = _usual_of(channel, index, selection, training - {case_id})
    if len(training - {case_id}) >= _FEW:
      notes = map(channel.said, intensities.notes(*described, in_hu, usual))
      found += [f'{case_id}: {note}' for note in notes if note not in index['cases'][case_id]['notes']]
  return found
