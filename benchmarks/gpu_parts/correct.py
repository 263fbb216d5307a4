"""Whether the device computes what it should: golden logits, losses and gradients of reference implementations."""

import functools
import traceback

from gpu_parts.item import Item, Work, markdown, number, single
from gpu_parts.worker import reason

PART, TITLE = 'correct', 'Correctness on the device'
# golden file -> network, classes, options, bound of the error in float32 (a share of the logits' standard deviation)
GOLDEN = {
  'unet': ('unet', 9, {}, 2e-5),
  'unet3d': ('unet3d', 14, {}, 3e-5),
  'unetr': ('unetr', 9, {}, 2e-5),
  'unetrpp': ('unetrpp', 14, {}, 2e-5),
  'transunet': ('transunet', 9, {}, 2e-5),
  'vatransunet': ('vatransunet', 9, {}, 2e-5),
  'unetpp': ('unetpp', 9, {}, 2e-5),
  'unetpp_ds': ('unetpp', 9, {'deep_supervision': True}, 2e-5),
}
# name -> dtype of the network, precision of the products of float32 numbers
PRECISIONS = {
  'highest': ('float32', 'highest'),
  'default': ('float32', 'default'),
  'bfloat16': ('bfloat16', 'default'),
}


def items(work: Work) -> list[Item]:
  found = [single(PART, 'losses', 'gpu_parts.correct:losses_and_gradients', {}, 240, timed=False)]
  wanted = [golden for golden in GOLDEN if work.chosen([GOLDEN[golden][0]])]
  for golden in wanted[:1] if work.dry else wanted:
    options = {'golden': golden, 'optimised': not work.dry}
    found.append(single(PART, f'logits {golden}', 'gpu_parts.correct:logits', options, 240, timed=False))
  return found


def logits(golden: str, optimised: bool = True) -> dict:
  """Errors of the logits in each precision, as shares of the standard deviation of the golden ones."""
  import golden_weights
  import jax

  from afw_jax import models
  from afw_jax.weights import convert

  network, classes, options, bound = GOLDEN[golden]
  _, state, image, numbers = golden_weights.load(golden)
  variables = convert.from_torch(network, state, **options)
  keys = [key for key in numbers if f'{key}_index' in numbers and key.startswith('eval')]
  facts = {'bound': bound}
  for name, (dtype, precision) in PRECISIONS.items():
    model = models.build(network, classes, dtype=dtype, **options)
    compiler = {} if optimised else {'compiler_options': {'xla_backend_optimization_level': 0}}
    try:
      with jax.default_matmul_precision(precision):
        heads = jax.jit(model.apply, **compiler)(variables, image)
      heads = heads if isinstance(heads, list) else [heads]
      facts[name] = max(
        golden_weights.worst_error(head, numbers, key) for head, key in zip(heads, sorted(keys), strict=True)
      )
    except Exception as error:  # the other precisions are still of interest
      traceback.print_exc()
      facts[name] = f'failed: {reason(error)}'
  return {**facts, 'right': isinstance(facts['highest'], float) and facts['highest'] < bound}


def losses_and_gradients() -> dict:
  """Largest relative errors of the losses, and of their gradients as shares of the largest entry, in float32."""
  import golden_weights
  import jax
  import jax.numpy as jnp
  import numpy as np

  numbers = np.load(golden_weights.FOLDER / 'losses.npz')
  values, gradients = {}, {}
  for case in range(5):
    golden = {key[2:]: numbers[key] for key in numbers if key.startswith(f'{case}/')}
    x, s = (jnp.asarray(golden[key], jnp.float32) for key in ('logits', 'log_sigma_sq'))
    found = jax.jit(_all_losses)(x, golden['labels'], s)
    for name, (value, (towards_x, towards_s)) in jax.device_get(found).items():
      values[f'{case}/{name}'] = abs(value - golden[name]) / max(abs(golden[name]), 1e-2)
      pairs = [(towards_x, golden[f'{name}/d_logits'])]
      if f'{name}/d_log_sigma_sq' in golden:
        pairs.append((towards_s, golden[f'{name}/d_log_sigma_sq']))
      gradients[f'{case}/{name}'] = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
  facts = {}
  for what, errors in (('value', values), ('gradient', gradients)):
    worst = max(errors, key=errors.get)
    facts |= {what: float(errors[worst]), f'worst_{what}': worst}
  return {**facts, 'right': facts['value'] < 1e-5 and facts['gradient'] < 1e-5}


def _all_losses(x, labels, s) -> dict:
  """Name of each golden loss -> (value, (gradient towards the logits x, towards log_sigma_sq s))."""
  import jax

  from afw_jax import losses

  functions = {
    'cross_entropy': losses.cross_entropy,
    'dice_squared_batch_mean': functools.partial(losses.dice_loss, squared=True),
    'dice_linear_batch_mean': losses.dice_loss,
    'generalised_dice_square_batch': losses.generalised_dice_loss,
    'focal_softmax_gamma2_mean_over_pixels_sum_over_classes': losses.focal_loss,
    'tversky_fp0.3_fn0.7_batch_mean': functools.partial(losses.tversky_loss, fp_weight=0.3, fn_weight=0.7),
  }
  of_both = {name: lambda x, s, f=f: f(x, labels) for name, f in functions.items()}
  of_both['afw_dice_released'] = lambda x, s: losses.afw_dice(x, labels, s, squared=True)
  return {name: jax.value_and_grad(f, argnums=(0, 1))(x, s) for name, f in of_both.items()}


def table(records: dict[str, dict], facts: dict) -> list[str]:
  rows = []
  for name, record in records.items():
    found = record['sides']['ours']
    if 'failed' in found:
      rows.append([name, f'failed: {found["failed"]}', *[''] * 4])
    elif name == 'losses':
      text = f'values {found["value"]:.1e} ({found["worst_value"]}), gradients {found["gradient"]:.1e}'
      rows.append([name, 'right' if found['right'] else 'WRONG', text, '1e-05', '', ''])
    else:
      errors = [f'{e:.1e}' if isinstance(e, float) else e for e in (found[precision] for precision in PRECISIONS)]
      rows.append([name, 'right' if found['right'] else 'WRONG', errors[0], number(found['bound']), *errors[1:]])
  heading = ['what', 'result', 'error, float32 highest', 'bound', 'error, float32 default', 'error, bfloat16']
  return markdown(heading, rows)
