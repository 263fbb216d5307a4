"""Trains the runs of tables one after the other, beside other processes that do the same with other runs of them."""

import os
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from afw_jax import workdir as run_folder
from afw_jax.errors import InputError, InputErrors
from afw_jax.paper import child, states
from afw_jax.paper.runs import Run, check_folder, command, shown_command
from afw_jax.system import locks

_LOCK = '.scheduled'  # held by the process that has started a run, from before it claims its workdir
_LOOK_AGAIN_S = 20


def work(
  runs: Sequence[Run],
  *,
  say: Callable[[str], None],
  finished: Callable[[], None],
  start: Callable[[Sequence[str], str, child.Signals], int] = child.run,
) -> list[InputError]:
  """Trains and scores every run that is not done; goes on with those that were interrupted.

  A run that another process is at is passed over, and looked at again when the others are done. One that fails does not
  stop the others.

  Args:
    runs: of this process.
    say: called with a line of progress.
    finished: called after each run that is done.
    start: runs a command in a folder (`child.run`).

  Returns:
    What went wrong with the runs that failed, each error once.

  Raises:
    InputError: a folder holds a run of another config.
    SystemExit: interrupted by Ctrl-C (130) or SIGTERM (143); the run under way was ended in order.
  """
  for run in runs:
    check_folder(run)
  left = [run for run in runs if not states.is_done(run)]
  failed: dict[str, InputError] = {}
  with child.signals() as caught:
    while left:
      before = len(left)
      for run in list(left):
        outcome = _attempt(run, runs, left, failed, say, caught, start)
        if caught.received:
          _end(runs, caught, say)
        if outcome == 'elsewhere':
          continue
        left.remove(run)
        if isinstance(outcome, InputError):
          if str(outcome) not in map(str, failed.values()):  # a data set that is not there fails all of its runs
            say(f'failed: {outcome}')
          failed[run.name] = outcome
        else:
          _report(finished, say)
      if len(left) == before:
        say(f'{progress_line(runs, left, failed)}: waiting for the runs of other processes')
        child.sleep(_LOOK_AGAIN_S, caught)
        while not caught.received and all(is_running(run) for run in left):
          child.sleep(_LOOK_AGAIN_S, caught)
        if caught.received:
          _end(runs, caught, say)
  return list({str(error): error for error in failed.values()}.values())


def _end(runs: Sequence[Run], caught: child.Signals, say: Callable[[str], None]) -> NoReturn:
  done = sum(states.is_done(run) for run in runs)
  say(f'interrupted: {done} of {len(runs)} runs are done; the same command goes on from here')
  raise SystemExit(caught.exit_code)


def _report(finished: Callable[[], None], say: Callable[[str], None]) -> None:
  """Collects the tables; what is wrong with one does not stop the other runs, and is an error at the end."""
  try:
    finished()
  except (InputError, InputErrors) as error:
    say(f'not collected: {error}')


def _attempt(run: Run, runs, left, failed, say, caught, start) -> str | InputError:
  """Trains a run: 'done', 'elsewhere' where another process is at it, or what went wrong."""
  if is_running(run):
    return 'elsewhere'
  if problem := states.problem_of(run):
    return problem
  try:
    with locks.locked(os.path.join(run.folder, _LOCK), patience_s=0):
      if states.is_done(run):  # by another process, since this one has looked
        return 'done'
      say(f'{progress_line(runs, left, failed, current=run)}: {run.name}')
      _note(run)
      code = start(command(run), run.folder, caught)
  except locks.InUse:
    return 'elsewhere'
  if code == 0 and states.is_done(run):
    return 'done'
  if code and not caught.received and run_folder.in_use(run.folder):  # somebody has started it by hand meanwhile
    return 'elsewhere'
  log = os.path.join(run.folder, child.LOG)
  ending = f'ended with exit code {code}' if code else 'ended, but is not trained and scored as its config says'
  said = child.last_error(run.folder)
  return InputError(
    run.folder, f'{ending}{f" ({said})" if code and said else ""}', f'Read {log}, then start the same command again.'
  )


def _note(run: Run) -> None:
  """Writes the command into the log, so that it can be repeated by hand."""
  with open(os.path.join(run.folder, child.LOG), 'a', encoding='utf-8') as log:
    log.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {shown_command(run)}\n')


def is_running(run: Run) -> bool:
  """Whether another process is at a run: one like this one, or the run itself, started by hand."""
  with locks.probed(os.path.join(run.folder, _LOCK)) as held:
    return held or run_folder.in_use(run.folder)


def progress_line(runs: Sequence[Run], left: Sequence[Run], failed, current: Run | None = None) -> str:
  """'3 of 8 runs done, 1 running, 4 left, about 12 min'; the time is that of all that is not done.

  Args:
    runs: all of this process.
    left: those that are neither done nor failed.
    failed: those that failed.
    current: the one that this process starts now.
  """
  running = [run for run in left if run is current or is_running(run)]
  words = [f'{len(runs) - len(left) - len(failed)} of {len(runs)} runs done', f'{len(running)} running']
  words += [f'{len(left) - len(running)} left', *([f'{len(failed)} failed'] if failed else [])]
  seconds = seconds_left([run for run in runs if run not in left and run.name not in failed], left)
  return ', '.join(words + ([f'about {duration(seconds)}'] if seconds is not None else []))


def seconds_left(done: Sequence[Run], left: Sequence[Run]) -> float | None:
  """The time that runs need by the pace of those that are done: of the same kind, if there are any.

  Returns:
    Seconds, if one process does them one after the other; None where no time is known yet.
  """
  known: dict[tuple, list[float]] = {}
  for run in done:
    if seconds := child.elapsed_s(run.folder):
      known.setdefault(_kind(run), []).append(seconds)
  every = [seconds for of_kind in known.values() for seconds in of_kind]
  if not every:
    return None
  expected = ((run, known.get(_kind(run), every)) for run in left)
  return sum(max(0.0, sum(times) / len(times) - child.elapsed_s(run.folder)) for run, times in expected)


def _kind(run: Run) -> tuple:
  """Runs of one kind take about the same time."""
  return run.data, run.config.model.name, run.config.train.epochs


def duration(seconds: float) -> str:
  """'40 s', '12 min', '3 h 20 min' or '4 d 3 h'."""
  minutes = round(seconds / 60)
  if minutes < 1:
    return f'{seconds:.0f} s'
  if minutes < 60:
    return f'{minutes} min'
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours < 24 else f'{hours // 24} d {hours % 24} h'
