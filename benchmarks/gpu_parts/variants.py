"""Other forms of what may be slow: depthwise gradients, the layout of 3D convolutions, the kernel of attention."""

import statistics
import time
from unittest import mock

from gpu_parts import sizes, speed
from gpu_parts.item import Item, Ready, Side, Work, failures, markdown, single, successes

PART, TITLE = 'variants', 'Other forms'
NHWC = '--xla_gpu_force_conv_nhwc=true'


def items(work: Work) -> list[Item]:
  side, batch = (8, 1) if work.dry else (56, 24)
  found = [
    single(
      PART, 'depthwise', 'gpu_parts.variants:depthwise_forms', {'side': side, 'batch_size': batch}, 150, least_s=30
    )
  ]
  for network, name, function, flags in (
    ('unet3d', 'NHWC', 'gpu_parts.speed:ours', NHWC),
    ('unetr', 'NHWC', 'gpu_parts.speed:ours', NHWC),
    ('unetr', 'plain attention', 'gpu_parts.variants:plain_attention', ''),
  ):
    if work.chosen([network]):
      sides, batch = sizes.size(network, work)
      options = {'network': network, 'sides': sides, 'batch_size': batch, 'dtype': 'bfloat16'}
      options |= {'round_s': speed.round_s(work), 'options': sizes.options(network, work)}
      rounds = 1 if work.dry else 3
      one = Item(PART, f'{network} {name}', {'ours': Side(function, options, 200)}, flags=flags, rounds=rounds)
      found.append(one)
  return found


def plain_attention(**options) -> Ready:
  """`speed.ours` with attention by XLA instead of cuDNN."""
  from afw_jax.models.layers import attention

  with mock.patch.object(attention, 'kernel', lambda *_: 'xla'):
    return speed.ours(**options)


def depthwise_forms(side: int, batch_size: int) -> dict:
  """Forward and backward of a depthwise convolution, 7 x 7, dilation 3, 64 channels, bfloat16, in three forms."""
  import jax
  import jax.numpy as jnp
  from jax import lax

  from afw_jax.models.layers.depthwise import _gradients_in_one, depthwise
  from gpu_parts.worker import reason

  @jax.custom_vjp
  def in_one(x, kernel):
    return depthwise(x, kernel, 3)

  in_one.defvjp(
    lambda x, kernel: (depthwise(x, kernel, 3), (x, kernel)),
    lambda saved, grad: _gradients_in_one(*saved, grad, dilation=3, parts=1),
  )

  def grouped(x, kernel):
    names, pads = ('NHWC', 'HWIO', 'NHWC'), [(9, 9), (9, 9)]
    return lax.conv_general_dilated(
      x, kernel, (1, 1), pads, rhs_dilation=(3, 3), dimension_numbers=names, feature_group_count=64
    )

  shape = (batch_size, side, side, 64)
  x, weight = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(2))
  kernel = jax.random.normal(jax.random.key(2), (7, 7, 1, 64), jnp.bfloat16) / 7
  facts, wanted = {}, None
  for name, form in (
    ('as is', lambda x, k: depthwise(x, k, 3)),
    ('as on CPUs', in_one),
    ('grouped', grouped),
  ):
    gradients = jax.grad(lambda x, k, form=form: (form(x, k) * weight).astype(jnp.float32).sum(), (0, 1))
    try:
      begun = time.perf_counter()
      call = jax.jit(gradients).lower(x, kernel).compile()
      found = {'compile_s': time.perf_counter() - begun}
      found['temporary_mib'] = call.memory_analysis().temp_size_in_bytes / 2**20
      towards_kernel = jax.block_until_ready(call(x, kernel))[1].astype(jnp.float32)
      wanted = towards_kernel if wanted is None else wanted
      found['difference'] = float(jnp.abs(towards_kernel - wanted).max() / jnp.abs(wanted).max())
      times = []
      for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready([call(x, kernel) for _ in range(10)])
        times.append((time.perf_counter() - start) / 10)
      found['ms'] = 1e3 * statistics.median(times)
    except Exception as error:  # the other forms are still of interest
      found = {'failed': reason(error)}
    facts[name] = found
  return facts


def table(records: dict[str, dict], facts: dict) -> list[str]:
  rows = failures(records)
  for name, found in successes(records).items():
    if name == 'depthwise':
      for form, one in found.items():
        text = f'failed: {one["failed"]}' if 'failed' in one else f'{one["ms"]:.3f} ms, {one["temporary_mib"]:.1f} MiB'
        more = '' if 'failed' in one else f', compiled in {one["compile_s"]:.1f} s, differs by {one["difference"]:.0e}'
        rows.append([f'depthwise, {form}', text + more])
    else:
      peak = f', peak {found["peak_gib"]:.2f} GiB' if found['peak_gib'] else ''
      rows.append([name, f'{1e3 * statistics.median(found["rounds"]):.2f} ms a step{peak}'])
  return markdown(['form', 'result'], rows)
