"""Survey of a data set: reads and checks every case as preparation does, and measures it; nothing is written."""

import dataclasses
import os

from afw_jax.data import usual
from afw_jax.data.fingerprint import measures, outliers
from afw_jax.data.preparation import load_case, sources, worker_pool
from afw_jax.data.preparation.examine_case import examine
from afw_jax.data.preparation.listing import make_listing
from afw_jax.data.preparation.options import StoreOptions
from afw_jax.data.selection import (
  Choice,
  Selection,
  SelectionOptions,
  choose,
  find_leaks,
  notes_on_cases,
  windows_of,
)
from afw_jax.data.sets import channels, layouts
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.errors import InputError, InputErrors


@dataclasses.dataclass(frozen=True)
class Survey:
  """What was found in a data set.

  Attributes:
    spec: of the data set.
    choice: the cases of the run, and their split.
    cases: case id -> its measures (`measures.of_case`) with 'label_sha256', the digest of its label map; of the cases
      without problems.
    problems: that preparation would refuse the data set for.
    notes: remarks that preparation would make.
    standing_out: remarks on cases that stand out among the others (`outliers.notes`).
    measured_channel: name of the channel whose intensities are measured; '' where there is one.
  """

  spec: DatasetSpec
  choice: Choice
  cases: dict[str, dict]
  problems: list[InputError]
  notes: list[str]
  standing_out: list[str]
  measured_channel: str


def survey(
  options: StoreOptions,
  root: str | os.PathLike,
  selected: SelectionOptions,
  *,
  workers: int | None = None,
  progress: bool = True,
  resample_dicom: bool = False,
) -> Survey:
  """Surveys the cases that a run would use.

  Args:
    options: of the store that would be prepared.
    root: folder of the data set.
    selected: options of the run.
    workers: processes; None: as many as CPUs and memory allow; 0: work in this process.
    progress: show a progress bar.
    resample_dicom: as in `prepare.prepare`.

  Raises:
    InputError, InputErrors: the cases cannot be listed: a missing folder, files that belong to no case, or options
      that do not fit.
  """
  spec = options.spec(os.fspath(root))
  files = {case.id: case for case in layouts.find_cases(spec, root)}
  choice = choose(make_listing(spec, files.values()), selected)
  content = options.to_json(spec)
  shared = {'spec': spec, 'options': content, 'resample_dicom': resample_dicom}
  jobs = [{'id': i, 'case': files[i], **shared} for i in choice.ids]
  results = worker_pool.run_jobs(survey_case, jobs, workers=workers, progress=progress, doing='check')
  results = {result['id']: result for result in sorted(results, key=lambda result: result['id'])}
  metas = {i: result['meta'] for i, result in results.items() if result.get('meta')}
  problems = [problem for result in results.values() for problem in result['problems']]
  problems += find_leaks(metas, choice.splits)
  cases = {i: results[i]['measures'] for i in metas}
  notes = _notes(spec, content, choice, metas)
  return Survey(spec, choice, cases, problems, notes, outliers.notes(cases), channels.measured(content).name)


def survey_case(job: dict) -> dict:
  """Checks and measures a case.

  Args:
    job: 'id', 'case' (`CaseFiles`), 'spec' (`DatasetSpec`), 'options' (`StoreOptions.to_json`) and 'resample_dicom'.

  Returns:
    {'id', 'problems' (list of InputError), 'meta' (as in case.json), 'measures'}; the last two None if there are
    problems.
  """
  case, spec = job['case'], job['spec']
  result = {'id': case.id, 'problems': [], 'meta': None, 'measures': None}
  try:
    sources.digests(case)  # whether its files can be read at all, which preparation finds out first
    found = examine(case, spec, job['options'], resample_dicom=job['resample_dicom'])
  except InputError as error:
    return {**result, 'problems': [error]}
  except InputErrors as errors:
    return {**result, 'problems': errors.errors}
  image = dataclasses.replace(found.image, array=channels.measured(job['options']).voxels(found.image.array))
  measured = measures.of_case(image, found.classes, spec.organs)
  measured['label_sha256'] = load_case.voxels_digest(found.classes)
  return {**result, 'meta': found.meta, 'measures': measured}


def _notes(spec: DatasetSpec, content: dict, choice: Choice, metas: dict[str, dict]) -> list[str]:
  """The notes of a preparation on the cases without problems."""
  index = {'organs': spec.organs, 'options': content, 'cases': metas}
  windows = windows_of(index, list(metas), choice.window)
  splits = {part: [i for i in ids if i in metas] for part, ids in choice.splits.items()}
  of_all = Selection(splits, choice.window, choice.excluded, choice.notes, choice.fold, windows, contents={})
  excluded = [f'left out: {case_id} ({reason})' for case_id, reason in choice.excluded.items()]
  return [
    *excluded,
    *choice.notes,
    *notes_on_cases(spec.organs, metas, splits['train']),
    *usual.notes_on_training(index, of_all),
  ]
