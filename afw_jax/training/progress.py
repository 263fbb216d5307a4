"""What a person and metrics.jsonl are told of training steps."""

import numpy as np


def scalars(aux: dict, class_names: tuple[str, ...]) -> dict[str, float]:
  """What metrics.jsonl keeps of a step.

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
  for name, key in (('train/dice', 'dice'), ('weight', 'weight'), ('train/contribution', 'contribution')):
    out |= {f'{name}/{c}': float(v) for c, v in zip(class_names, terms.get(key, ()))}
  return out


def postfix(values: dict, terms: dict, class_names: tuple[str, ...], best_dsc: float | None) -> str:
  """The end of the progress bar's line."""
  text = f'loss {values["train/loss"]:.3f}, batch DSC {values["train/dsc"]:.3f}'
  text += f', best val {best_dsc:.3f}' if best_dsc is not None else ''
  if 'weight' in terms:
    low, high = int(np.argmin(terms['weight'])), int(np.argmax(terms['weight']))
    text += (
      f', weights {terms["weight"][low]:.2f} ({class_names[low]}) to {terms["weight"][high]:.2f} ({class_names[high]})'
    )
  return text + f', {values["images_per_s"]:.1f} img/s'


def non_finite(done: int, aux: dict, case_ids: list[str], class_names: tuple[str, ...]) -> str:
  """The message of a step whose loss or gradient is not finite."""
  terms = '; '.join(
    f'{k}: ' + ', '.join(f'{c} {v:.4g}' for c, v in zip(class_names, values)) for k, values in aux['terms'].items()
  )
  return (
    f'step {done}: loss {aux["loss"]:.4g}, gradient norm {aux["grad_norm"]:.4g}. Cases in the batch: '
    f'{", ".join(sorted(set(case_ids)))}. Class terms: {terms}. Nothing of this step was saved; lower '
    'optimizer.learning_rate or set optimizer.clip_norm.'
  )
