"""Progress of the training loop: metric records, progress bar, speed, and the check for non-finite steps."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from afw_jax.distributed import runtime
from afw_jax.system import terminal
from afw_jax.training.metric_writer import MetricWriter


@dataclasses.dataclass(frozen=True)
class Run:
  """What the records of a run need to know about it.

  Attributes:
    class_names: background included.
    batch_size: of the global batch.
    steps_per_epoch: steps of one epoch.
    total_steps: steps of the whole run.
    log_every: every so many steps one record is written; the last step always has one.
    schedule: step -> learning rate.
    case_of: number of a sample in the source -> its case id.
  """

  class_names: tuple[str, ...]
  batch_size: int
  steps_per_epoch: int
  total_steps: int
  log_every: int
  schedule: Callable[[int], Any]
  case_of: Callable[[int], str]


class Progress:
  """Follows a training run step by step.

  The results of a step are read one step late, so that the host never waits for the device before it starts the next.

  Args:
    run: the run.
    writer: takes the records; closed by `close`.
    start_step: the step that training starts from.
    best_dsc: best validation DSC so far, None without one.
  """

  def __init__(self, run: Run, writer: MetricWriter, *, start_step: int, best_dsc: float | None):
    self._run, self._writer, self._best_dsc = run, writer, best_dsc
    self._pending: tuple | None = None
    self._bar = terminal.progress_bar(
      total=run.total_steps,
      initial=start_step,
      unit='step',
      desc='train',
      disable=runtime.process_index() > 0,
      mininterval=0.5 if terminal.is_interactive() else 30,
    )
    self._done = start_step
    self.restart_clock(start_step)

  def restart_clock(self, step: int) -> None:
    """Measures the speed from here on, so that a validation does not count as training time."""
    self._since, self._since_step, self._waited = time.perf_counter(), step, 0.0

  def step(self, done: int, aux: dict, picked: np.ndarray, wait_s: float) -> None:
    """Notes a step that was just dispatched, and reads the results of the one before it.

    Args:
      done: number of the step, from 1.
      aux: of the train step, on the device.
      picked: (B,) numbers of its samples in the source.
      wait_s: seconds that its batch was waited for.

    Raises:
      FloatingPointError: loss or gradient of the step before are not finite.
      InputError: the records cannot be written.
    """
    self.flush()
    self._pending = (done, aux, picked, wait_s)

  def flush(self) -> None:
    """Reads the results of the last step noted, waiting for the device; raises what `step` raises."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      self._read(*pending)

  def _read(self, done: int, aux: dict, picked: np.ndarray, wait_s: float) -> None:
    run, aux = self._run, jax.device_get(aux)
    if not (np.isfinite(aux['loss']) and np.isfinite(aux['grad_norm'])):
      raise FloatingPointError(non_finite(done, aux, [run.case_of(i) for i in picked], run.class_names))
    self._bar.update(1)
    self._done = done
    self._waited += wait_s
    if done % run.log_every and done != run.total_steps:
      return
    steps = done - self._since_step
    values = scalars(aux, run.class_names) | {
      'epoch': done / run.steps_per_epoch,
      'train/lr': float(run.schedule(done - 1)),
      'images_per_s': steps * run.batch_size / max(time.perf_counter() - self._since, 1e-9),
      'data_wait_s': self._waited / max(steps, 1),
    }
    self.restart_clock(done)
    self._writer.write(done, values)
    self._bar.set_postfix_str(postfix(values, aux['terms'], run.class_names, self._best_dsc))

  def validated(self, done: int, scores: dict[str, float], best_dsc: float | None) -> None:
    """Records the scores of a validation; `best_dsc` is the best so far, this one included."""
    self._best_dsc = best_dsc
    self._writer.write(done, scores)
    if runtime.process_index() == 0:
      terminal.say(f'step {done}: validation DSC {scores["val/dsc"]:.4f}')

  def close(self) -> None:
    """Ends the bar and closes the records."""
    self._bar.close()
    self._writer.close(finished=self._done == self._run.total_steps)


def scalars(aux: dict, class_names: tuple[str, ...]) -> dict[str, float]:
  """The values of a step that are recorded in metrics.jsonl.

  Args:
    aux: of the train step, on the host.
    class_names: background included.
  """
  terms = aux['terms']
  out = {
    'train/loss': float(aux['loss']),
    'train/grad_norm': float(aux['grad_norm']),
    'train/dsc': 1 - float(np.mean(terms['dice'][1:])),
  }
  recorded = {'train/dice': 'dice', 'weight': 'weight', 'train/contribution': 'contribution', 'pull': 'pull'}
  for name, key in recorded.items():
    out |= {f'{name}/{c}': float(v) for c, v in zip(class_names, terms.get(key, ()))}
  return out


def postfix(values: dict, terms: dict, class_names: tuple[str, ...], best_dsc: float | None) -> str:
  """The text behind the progress bar."""
  text = f'loss {values["train/loss"]:.3f}, batch DSC {values["train/dsc"]:.3f}'
  text += f', best val {best_dsc:.3f}' if best_dsc is not None else ''
  for key in ('weight', 'pull') if 'weight' in terms else ():
    low, high = int(np.argmin(terms[key])), int(np.argmax(terms[key]))
    text += f', {key} {terms[key][low]:.3g} ({class_names[low]}) to {terms[key][high]:.3g} ({class_names[high]})'
  return text + f', {values["images_per_s"]:.1f} img/s'


def non_finite(done: int, aux: dict, case_ids: list[str], class_names: tuple[str, ...]) -> str:
  """Error message for a step whose loss or gradient is not finite."""
  terms = '; '.join(
    f'{k}: ' + ', '.join(f'{c} {v:.4g}' for c, v in zip(class_names, values)) for k, values in aux['terms'].items()
  )
  return (
    f'step {done}: loss {aux["loss"]:.4g}, gradient norm {aux["grad_norm"]:.4g}. Cases in the batch: '
    f'{", ".join(sorted(set(case_ids)))}. Class terms: {terms}. Nothing of this step was saved; lower '
    'optimizer.learning_rate or set optimizer.clip_norm.'
  )
