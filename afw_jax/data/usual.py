"""What is usual among the training cases of a run: checkpoints keep it, and other scans are compared with it."""

from collections.abc import Mapping

from afw_jax.data import field_of_view
from afw_jax.data.selection import Selection
from afw_jax.data.sets import intensities

_FEW = 3  # fewer other cases do not say what is usual


def usual_of_training(index: Mapping, selection: Selection) -> dict:
  """What is usual among the training cases of a run, as JSON.

  Args:
    index: of the store.
    selection: of the run.

  Returns:
    'intensities', see `intensities.usual_of`; and 'position', how far bodies reach beyond the working grid in the cases
    of which it cuts off no organ, see `field_of_view.placed`.
  """
  cases = {case_id: index['cases'][case_id] for case_id in selection.splits['train']}
  described = [(case['intensities'], selection.windows[case_id]) for case_id, case in cases.items()]
  return {
    'intensities': intensities.usual_of(described, intensities.is_hu(index['options'])),
    'position': field_of_view.usual_of([case['overhang'] for case in cases.values() if not case['cut_off']]),
  }


def overhang_of(record: Mapping) -> field_of_view.Usual | None:
  """How far bodies usually reach beyond the grid, from the data record of a checkpoint; None in one without it."""
  return (record.get('usual') or {}).get('position')


def notes_on(described: Mapping, window: tuple[float, float], record: Mapping) -> list[str]:
  """What is unusual about the intensities of a scan for a trained network.

  Args:
    described: of the scan, from `intensities.describe`.
    window: its intensity window.
    record: of the data in the checkpoint; one without 'usual' leaves the rules that need none.

  Returns:
    Sentences without a full stop.
  """
  usual = (record.get('usual') or {}).get('intensities')
  return intensities.notes(described, window, intensities.is_hu(record['options']), usual)


def notes_on_training(index: Mapping, selection: Selection) -> list[str]:
  """What is unusual about cases of a run among its own training cases, beside the notes that each case has by itself.

  Args:
    index: of the store.
    selection: of the run.

  Returns:
    '<case>: <note>' for each.
  """
  in_hu, training = intensities.is_hu(index['options']), set(selection.splits['train'])
  described = {i: (index['cases'][i]['intensities'], selection.windows[i]) for i in selection.ids}
  usual_of = lambda ids: intensities.usual_of([described[i] for i in ids], in_hu)
  of_all, found = usual_of(training), []
  for case_id in selection.ids:
    usual = of_all
    if case_id in training and of_all and intensities.is_outermost(*described[case_id], in_hu, of_all):
      usual = usual_of(training - {case_id})
    if len(training - {case_id}) >= _FEW:
      notes = intensities.notes(*described[case_id], in_hu, usual)
      found += [f'{case_id}: {note}' for note in notes if note not in index['cases'][case_id]['notes']]
  return found
