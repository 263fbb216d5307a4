"""--mode=check: checks a data set as preparation does and measures it; writes a report, and nothing into a store."""

import os

import ml_collections

from afw_jax.config import build
from afw_jax.data.fingerprint import measures
from afw_jax.data.preparation.survey import Survey, survey
from afw_jax.errors import InputError
from afw_jax.planning import accelerators, proposal
from afw_jax.report import survey as report
from afw_jax.report.blocks import markdown
from afw_jax.report.page import document, pages
from afw_jax.system import atomic_files, terminal

FOLDER = 'check'


def check(
  config: ml_collections.ConfigDict,
  workdir: str,
  target_name: str,
  memory_gib: float | None = None,
  resample_dicom: bool = False,
) -> None:
  """Writes WORKDIR/check: check.json (all numbers), check.md and index.html (the page), and prints a summary.

  Args:
    config: `data` names the data set and the cases of the run, `model` the network of the proposal.
    workdir: of the run to come; nothing else of it is read or written.
    target_name: the device of the proposal, one of `accelerators.TARGETS`.
    memory_gib: its memory, as in `proposal.propose`.
    resample_dicom: as in `prepare.prepare`.

  Raises:
    InputError: the data set has problems, which are printed; or a file cannot be written.
    InputErrors: the cases cannot be listed.
  """
  folder = os.path.join(os.path.expanduser(workdir), FOLDER)
  pages.check_free(os.path.join(folder, 'index.html'))  # before the work, as the next two
  accelerators.get(target_name, memory_gib)
  build.network(config, 2)
  found = survey(
    build.store_options(config.data),
    config.data.root,
    build.selection_options(config.data),
    workers=config.runtime.workers or None,
    resample_dicom=resample_dicom,
  )
  proposed = _propose(config, found, target_name, memory_gib) if found.cases else None
  content = {
    'name': found.spec.name,
    'root': config.data.root,
    'modality': found.spec.modality,
    'organs': list(found.spec.organs),
    'measured_channel': found.measured_channel,
    'splits': found.choice.splits,
    'excluded': found.choice.excluded,
    'problems': [str(problem) for problem in found.problems],
    'standing_out': found.standing_out,
    'notes': found.notes,
    'cases': found.cases,
    'summary': measures.over_cases(found.cases.values()) if found.cases else None,
    'proposal': proposed,
  }
  blocks = report.blocks(content)
  atomic_files.write_json(os.path.join(folder, 'check.json'), content)
  atomic_files.write_text(os.path.join(folder, 'check.md'), markdown(blocks))
  atomic_files.write_text(os.path.join(folder, 'index.html'), document.page(blocks))
  terminal.say(report.terminal_text(content, folder))
  if found.problems:
    cure = 'Mend them, then check again'
    raise InputError(config.data.root, f'has {len(found.problems)} problem(s), listed above and in {folder}', cure)


def _propose(config: ml_collections.ConfigDict, found: Survey, target_name: str, memory_gib: float | None) -> dict:
  hidden = not (memory_gib and terminal.is_interactive())
  with terminal.progress_bar(
    desc='compile', leave=False, mininterval=0.5, bar_format='{desc} {elapsed}', disable=hidden
  ) as bar:
    return proposal.propose(config, list(found.cases.values()), target_name, memory_gib, on_wait=bar.refresh)
