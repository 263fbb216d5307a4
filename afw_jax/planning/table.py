"""The table and the advice that `--mode=plan` prints."""

import math
from collections.abc import Sequence

from afw_jax.planning import accelerators

Mesh = tuple[int, int]
_NO_MESH = (
  'no such mesh: it has to divide the batch and the first side of the samples, and leave each device at least one row '
  'at the deepest level of the network'
)

HEADING = (
  f'{"devices":>7} {"data x spatial":>15} {"GiB/device":>11} {"temporary":>10} {"fits":>5} {"TFLOP/device":>13} '
  f'{"collectives":>12} {"MiB/step":>9} {"largest MiB":>24}  by kind (MiB)'
)


def row(
  choice: str,
  *,
  mesh: Mesh | None,
  fits: bool,
  flops: float = 0,
  memory: dict[str, int] | None = None,
  traffic: Sequence[tuple[str, int, int]] = (),
  exhausted: float = 0,
  refused: str = '',
  fused_attention: bool = False,
  seconds: float = 0,
) -> str:
  """One line of the table.

  Args:
    choice: what the user asked for, '8' or '4x2'.
    mesh: (data, spatial), or None where the choice gives no mesh.
    fits: whether a device has memory for the program.
    flops: floating point operations of one step of the whole batch.
    memory: see `accelerators.memory`; None where the compiler refused the program.
    traffic: see `collectives.traffic`.
    exhausted: the GiB per device that the compiler refused to allocate.
    refused: why the program does not compile.
    fused_attention: see `measure.measure`; not shown.
    seconds: to compile; not shown.
  """
  if mesh is None:
    return f'{choice:>7}  {_NO_MESH}'
  devices = math.prod(mesh)
  if refused:
    return f'{devices:>7} {"{} x {}".format(*mesh):>15}  does not compile: {refused}'
  total, temporary = (f'{memory[k] / accelerators.GIB:.3g}' if memory else '' for k in ('total', 'temporary'))
  line = (
    f'{devices:>7} {"{} x {}".format(*mesh):>15} {total or f"{exhausted:.3g}":>11} {temporary:>10} '
    f'{"yes" if fits else "no":>5} {flops / devices / 1e12:>13.3g}'
  )
  if memory is None:
    return line
  kind, largest, _ = max(traffic, key=lambda t: t[1], default=('', 0, 0))
  count, mib = sum(times for _, _, times in traffic), sum(size * times for _, size, times in traffic) / 2**20
  return f'{line} {count:>12} {mib:>9.1f} {f"{largest / 2**20:.2f} {kind}":>24}  {_kinds(traffic)}'.rstrip()


def _kinds(traffic: Sequence[tuple[str, int, int]]) -> str:
  """Number and MiB of the collectives of each kind, '21 all-reduce (63.0), 70 collective-permute (181.2)'."""
  texts = []
  for kind in sorted({kind for kind, _, _ in traffic}):
    own = [(size, times) for k, size, times in traffic if k == kind]
    texts.append(f'{sum(times for _, times in own)} {kind} ({sum(size * times for size, times in own) / 2**20:.1f})')
  return ', '.join(texts)


def advice(rows: list[dict], target: accelerators.Target) -> list[str]:
  """Lines below the table: the operations of a step, the smallest mesh that fits, and what may help where none does.

  Args:
    rows: the keyword arguments of `row` for each choice.
    target: the kind of device.
  """
  flops = [row['flops'] for row in rows if row.get('flops')]
  lines = [f'One step of the whole batch: {flops[0] / 1e12:.3g} TFLOP, forward and backward.'] if flops else []
  if any(row.get('fused_attention') for row in rows):
    lines.append(
      'On the GPU attention runs in a fused kernel of cuDNN, which cannot be compiled without the GPU. Here it is that '
      'of XLA: the real program may need less memory.'
    )
  refused = [row for row in rows if row.get('refused')]
  if refused and target.platform == 'cuda':
    lines.append('What does not compile here may compile on the GPU, where kernels are chosen by timing them.')
  fitting = [row for row in rows if row['fits']]
  if refused and len(refused) == sum(row['mesh'] is not None for row in rows):
    return [*lines, 'None of these compiles.']
  if not fitting:
    return [
      *lines,
      'None of these fits. More devices, --config.model.remat=True, --config.model.dtype=bfloat16, a smaller batch, '
      'or --config.train.micro_batches may help.',
    ]
  smallest = min(fitting, key=lambda row: math.prod(row['mesh']))
  data, spatial = smallest['mesh']
  devices = data * spatial
  lines.append(
    f'The smallest of these that fits: {devices} device{"s" * (devices > 1)}, '
    f'--config.mesh.data={data} --config.mesh.spatial={spatial}'
  )
  if target.platform == 'cuda' and smallest['memory']['total'] / accelerators.GIB > 0.7 * target.memory_gib:
    lines.append(
      'JAX allocates three quarters of the memory of a GPU by default; to use it all, start with '
      'XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.'
    )
  return lines
