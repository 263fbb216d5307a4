"""Compares evaluated runs case by case, with paired tests; runs that were not scored alike are refused."""

import os

import numpy as np

from afw_jax.errors import InputError
from afw_jax.report import tables
from afw_jax.report.blocks import Block, Heading, Table, markdown
from afw_jax.report.notes import RULES, caution, fold_note, split_note
from afw_jax.report.runs import SETTINGS, Run, read_run
from afw_jax.report.stats import paired
from afw_jax.report.tables import heading, number

# What has to be equal for scores to be comparable: field of Run -> how an error calls it.
_ALIKE = {
  'dataset': 'data set',
  'split': 'split',
  'convention': 'convention',
  'unit': 'unit of the distances',
  'nsd_tolerance': 'NSD tolerance',
  'organs': 'organs',
}
_CURE = 'Evaluate both in the same way (--mode=evaluate).'


def compare(workdirs: list[str]) -> str:
  """`collect` as Markdown."""
  return markdown(collect(workdirs))


def collect(workdirs: list[str]) -> list[Block]:
  """Compares several runs on the cases that all of them scored, and tests each against the first.

  Args:
    workdirs: of evaluated runs, two or more.

  Returns:
    Blocks of a report: the mean DSC and HD95 with 95 % confidence intervals, the DSC of every organ, and for each run
    the paired difference to the first with its interval and the p-value of Wilcoxon's signed-rank test over cases.

  Raises:
    InputError: fewer than two runs; no case in common; or runs whose scores cannot be compared: another data set,
      split, metric convention, unit, NSD tolerance or kind of checkpoint, other organs, or another truth of a case.
  """
  if len(workdirs) < 2:
    raise InputError('--workdir', f'{len(workdirs)} run(s) given', 'Name two or more to compare.')
  runs = [read_run(w) for w in workdirs]
  for run in runs[1:]:
    check_alike(run, runs[0])
  common = [case for case in runs[0].cases if all(case in run.cases for run in runs)]
  if not common:
    raise InputError(', '.join(workdirs), 'have no case in common', 'Evaluate them on the same split.')
  left_out = len({case for run in runs for case in run.cases}) - len(common)
  runs = [run.only(common) for run in runs]
  for run in runs[1:]:
    check_same_truth(run, runs[0])

  names, distance = _names(runs), heading(runs[0], 'hd95_pooled_mm', 'HD95')
  tests = [_test(f'{name} - {names[0]}', run, runs[0]) for name, run in zip(names[1:], runs[1:])]
  return [
    Heading('Comparison', 1),
    *_notes(names, runs, left_out),
    Table(
      ['run', 'DSC (%) [95 % CI]', f'{distance} [95 % CI]', 'missed', 'false'],
      [_overview(name, run) for name, run in zip(names, runs)],
    ),
    Heading('Paired differences'),
    Table(['runs', 'DSC (%)', 'p', distance, 'p', 'cases'], tests),
    Heading('DSC of each organ'),
    tables.wide_table(list(zip(names, runs))),
  ]


def check_alike(run: Run, first: Run) -> None:
  """Raises InputError where two runs were not scored alike."""
  for field, name in _ALIKE.items():
    if getattr(run, field) != getattr(first, field):
      raise InputError(
        run.workdir,
        f'has {name} {getattr(run, field)!r}, {first.workdir} has {getattr(first, field)!r}',
        _CURE,
      )
  one, other = (r.settings.get('checkpoint', 'not recorded') for r in (run, first))
  if one != other:
    raise InputError(
      run.workdir,
      f'was scored with the checkpoint {one!r}, {first.workdir} with {other!r}',
      'Evaluate both with the same --config.eval.checkpoint.',
    )


def check_same_truth(run: Run, first: Run) -> None:
  """Raises InputError where the same case has another reference label map or another grid."""
  for i, case in enumerate(run.cases):
    cure = 'The runs were scored on different scans or labels: evaluate both on the same data.'
    one, other = run.spacings_mm[i], first.spacings_mm[i]
    if one and other and not np.allclose(one, other, rtol=1e-4):
      raise InputError(run.workdir, f'case {case} has spacing {one} mm, in {first.workdir} {other} mm', cure)
    one, other = run.volumes['true_voxels'][i], first.volumes['true_voxels'][i]
    for organ, a, b in zip(run.organs, one, other):
      if a != b and not np.isnan([a, b]).any():
        raise InputError(
          run.workdir, f'{organ} of case {case} has {a:.0f} voxels in the truth, in {first.workdir} {b:.0f}', cure
        )


def _overview(name: str, run: Run) -> list[str]:
  """One row: mean DSC and HD95 with their intervals, organs missed and falsely predicted."""
  mean = tables.organ_rows(run)[-1][1]
  intervals = [f'{number(s.mean)} [{number(s.low)}, {number(s.high)}]' for s in (mean['dsc'], mean['hd95_pooled_mm'])]
  return [name, *intervals, *(str(int(run.flags[flag].sum())) for flag in ('missed', 'false_positive'))]


def _test(name: str, run: Run, first: Run) -> list[str]:
  """One row: paired differences of DSC and HD95 to the first run, each with its p-value."""
  results = [
    paired(first.mean_over_organs(key) * factor, run.mean_over_organs(key) * factor)
    for key, factor in (('dsc', 100), ('hd95_pooled_mm', 1))
  ]
  interval = lambda r: f'{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]'.replace('+nan', '-')
  return [name, *(cell for r in results for cell in (interval(r), _p(r.p))), str(results[0].n)]


def _notes(names: list[str], runs: list[Run], left_out: int) -> list[str]:
  first, count = runs[0], len(runs[0].cases)
  least = paired(first.mean_over_organs('dsc'), first.mean_over_organs('dsc')).least_p
  return [
    f'{count} common case(s)'
    + (f' ({left_out} others left out)' if left_out else '')
    + f', {first.dataset}, split {first.split}. Metric convention: **{first.convention}**. {RULES[first.convention]}',
    *split_note(first.split, first.settings.get('checkpoint')),
    *_folds(names, runs),
    *_unchecked(names, runs),
    *_different_settings(names, runs),
    'Brackets: 95 % bootstrap intervals over cases (5000 resamples, seed 0). p: Wilcoxon signed-rank test, two-sided, '
    f'over cases, not corrected for several comparisons; with {count} cases it cannot be below {least:.2g}. It '
    'measures the spread over cases of these trained networks, not over training seeds.',
    *caution(count),
  ]


def _unchecked(names: list[str], runs: list[Run]) -> list[str]:
  """A warning for runs that do not record which cases they were trained on."""
  unknown = [name for name, run in zip(names, runs) if None in run.training_splits]
  if not unknown:
    return []
  return [
    f'**Not checked: {", ".join(unknown)}.** It is not recorded on which cases the network was trained (imported '
    'weights, or scores of an older version), so that some of the cases above may have been among them.'
  ]


def _folds(names: list[str], runs: list[Run]) -> list[str]:
  """The folds of a cross-validation that runs are or are pooled over, with a warning where these are not the same."""
  late = [f'{name}: {", ".join(run.unfinished)}' for name, run in zip(names, runs) if run.unfinished]
  late = [f'**Folds whose training had not come to its end:** {"; ".join(late)}.'] if late else []
  if len({run.folds for run in runs}) == 1:
    return [*fold_note(runs[0].folds), *late]
  shown = '; '.join(f'{name}: {", ".join(run.folds) or "none"}' for name, run in zip(names, runs))
  return [f'**Different folds:** {shown}. The networks were trained on different cases.', *late]


def _different_settings(names: list[str], runs: list[Run]) -> list[str]:
  """A warning where label maps were predicted with different settings, such as test-time augmentation."""
  differing = [key for key in SETTINGS if any(r.settings.get(key) != runs[0].settings.get(key) for r in runs)]
  if not differing:
    return []
  shown = []
  for name, run in zip(names, runs):
    settings = ', '.join(f'{key} {run.settings.get(key, "not recorded")}' for key in differing)
    shown.append(f'{name} with {settings}')
  return [f'**Predicted with different settings:** {"; ".join(shown)}. The differences below include their effect.']


def _names(runs: list[Run]) -> list[str]:
  """Shortest names that tell the runs apart: the loss, network and loss, or the workdir."""
  for name in (lambda r: r.loss, lambda r: f'{r.network} {r.loss}'):
    if len({name(r) for r in runs}) == len(runs):
      return [name(r) for r in runs]
  return [os.path.normpath(r.workdir) for r in runs]


def _p(value: float) -> str:
  return '-' if np.isnan(value) else '< 0.001' if value < 0.001 else f'{value:.3f}'
