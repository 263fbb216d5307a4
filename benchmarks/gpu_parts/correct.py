"""Whether the device computes what it should: golden logits, losses and gradients of reference implementations."""

from gpu_parts.item import Item, Work, markdown, number, single

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
  found = [single(PART, 'losses', 'correct:losses_and_gradients', {}, 120, timed=False)]
  for golden in ['unet'] if work.dry else GOLDEN:
    options = {'golden': golden, 'optimised': not work.dry}
    found.append(single(PART, f'logits {golden}', 'correct:logits', options, 240, timed=False))
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
    with jax.default_matmul_precision(precision):
      heads = jax.jit(model.apply, **compiler)(variables, image)
    heads = heads if isinstance(heads, list) else [heads]
    if len(heads) != len(keys):
      raise ValueError(f'{golden}: {len(heads)} heads, golden are {keys}')
    facts[name] = max(golden_weights.worst_error(head, numbers, key) for head, key in zip(heads, sorted(keys)))
  return {**facts, 'right': facts['highest'] < bound}


def losses_and_gradients() -> dict:
  """Largest relative errors of the losses, and of their gradients as shares of the largest entry, in float32."""
  import golden_weights
  import jax
  import jax.numpy as jnp
  import numpy as np

  from afw_jax import losses

  numbers = np.load(golden_weights.FOLDER / 'losses.npz')
  functions = {
    'cross_entropy': losses.cross_entropy,
    'dice_squared_batch_mean': lambda x, y: losses.dice_loss(x, y, squared=True),
    'dice_linear_batch_mean': losses.dice_loss,
    'generalised_dice_square_batch': losses.generalised_dice_loss,
    'focal_softmax_gamma2_mean_over_pixels_sum_over_classes': losses.focal_loss,
    'tversky_fp0.3_fn0.7_batch_mean': lambda x, y: losses.tversky_loss(x, y, fp_weight=0.3, fn_weight=0.7),
  }
  values, gradients = {}, {}
  for case in range(5):
    x, labels = jnp.asarray(numbers[f'{case}/logits'], jnp.float32), numbers[f'{case}/labels']
    s = jnp.asarray(numbers[f'{case}/log_sigma_sq'], jnp.float32)
    every = {name: lambda x, s, f=f: f(x, labels) for name, f in functions.items()}
    every['afw_dice_released'] = lambda x, s: losses.afw_dice(x, labels, s, squared=True)
    found = jax.jit(lambda x, s: {k: jax.value_and_grad(f, argnums=(0, 1))(x, s) for k, f in every.items()})(x, s)
    for name, (value, (towards_x, towards_s)) in jax.device_get(found).items():
      wanted, key = float(numbers[f'{case}/{name}']), f'{case}/{name}/d_logits'
      values[f'{case}/{name}'] = abs(value - wanted) / max(abs(wanted), 1e-2)
      pairs = [(towards_x, numbers[key])]
      if name == 'afw_dice_released':
        pairs.append((towards_s, numbers[f'{case}/{name}/d_log_sigma_sq']))
      gradients[f'{case}/{name}'] = max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)
  facts = {}
  for what, errors in (('value', values), ('gradient', gradients)):
    worst = max(errors, key=errors.get)
    facts |= {what: float(errors[worst]), f'worst_{what}': worst}
  return {**facts, 'right': facts['value'] < 1e-5 and facts['gradient'] < 1e-5}


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
      errors = [f'{found[precision]:.1e}' for precision in PRECISIONS]
      rows.append([name, 'right' if found['right'] else 'WRONG', errors[0], number(found['bound']), *errors[1:]])
  heading = ['what', 'result', 'error, float32 highest', 'bound', 'error, float32 default', 'error, bfloat16']
  return markdown(heading, rows)
