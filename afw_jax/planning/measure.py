"""Compiles the training step of a config for one mesh; reads memory, communication and operations from the program."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from afw_jax.config import build
from afw_jax.config.program import make_program
from afw_jax.data.sets.spec import DatasetSpec
from afw_jax.distributed import sharding
from afw_jax.models.layers import attention
from afw_jax.planning import accelerators, collectives


def measure(
  config: ml_collections.ConfigDict,
  target_name: str,
  mesh_shape: tuple[int, int],
  *,
  memory_gib: float | None = None,
  flops: float | None = None,
) -> dict:
  """Compiles one program; call it in a process started with `accelerators.environment`.

  Args:
    config: as `config.default_config` describes it.
    target_name: one of `accelerators.TARGETS`.
    mesh_shape: (data, spatial), parts of the batch and parts of a sample.
    memory_gib: the memory of one device, instead of the target's own.
    flops: the operations of one step where they are known already, to save counting them.

  Returns:
    'flops': floating point operations of one step of the whole batch; 'seconds' to compile; and either 'memory', see
    `accelerators.memory`, and 'traffic', see `collectives.traffic`, or 'exhausted': the GiB per device that the
    compiler refused to allocate, or 'refused': why the program does not compile. 'fused_attention' says whether on the
    hardware attention has another kernel, which cannot be compiled without it.

  Raises:
    InputError: the config cannot be trained on this mesh.
  """
  target = accelerators.get(target_name, memory_gib)
  data, spatial = mesh_shape
  mesh = sharding.make_mesh(data, spatial, accelerators.devices(target_name, target, data * spatial))
  fused = []

  def attend(query, key, value, *, divided=False):
    if not divided and attention.kernel(query.dtype, query.shape[-1], target.device) == 'cudnn':
      fused.append(query.shape)
    return attention.plain_attend(query, key, value)

  train_step, arguments = program(
    config, mesh, micro_batches=config.train.micro_batches, unroll=target.platform == 'cpu', attend=attend
  )
  result = {'flops': flops or count_flops(config)}
  start = time.perf_counter()
  try:
    lowered = train_step.lower(*arguments)
    compiled = lowered.compile()
    result |= {'memory': accelerators.memory(compiled), 'traffic': collectives.traffic(compiled.as_text())}
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:  # of the compiler, and of JAX's lowering to it
    needed = accelerators.exhausted(str(error))
    result |= {'refused': accelerators.reason(str(error))} if needed is None else {'exhausted': needed}
  return {**result, 'fused_attention': bool(fused), 'seconds': time.perf_counter() - start}


def program(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  *,
  micro_batches: int,
  unroll: bool,
  attend: Callable | None = None,
):
  """Returns the training step that `train.train` runs for a config, not yet compiled, and its arguments.

  Args:
    config: as `config.default_config` describes it.
    mesh: data x spatial.
    micro_batches: the number of parts of the batch whose gradients are summed.
    unroll: whether these parts are unrolled in the program instead of a loop.
    attend: computes self-attention, instead of `layers.attention.attend`.

  Returns:
    (the jitted step, (state, batch, key) as `jax.ShapeDtypeStruct`s with shardings on the mesh).

  Raises:
    InputError: the config cannot be trained on this mesh.
  """
  spec = build.store_options(config.data).spec(config.data.root if config.data.dataset == 'folder' else None)
  made = make_program(
    config,
    mesh,
    ('background', *spec.organs),
    max(config.train.steps_per_epoch, 1),
    channels=len(spec.channels) or 1,
    micro_batches=micro_batches,
    unroll=unroll,
    attend=attend,
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
  return made.train_step, (made.abstract_state(), _batch(config, spec, mesh), key)


def _batch(config: ml_collections.ConfigDict, spec: DatasetSpec, mesh: jax.sharding.Mesh) -> dict:
  """A batch as the pipeline makes it, without values."""
  batch_size, size = config.train.batch_size, build.input_size(config)
  several = [kind for _, kind in spec.channels]
  only_ct = set(several or [spec.modality]) == {'CT'}
  image_dtype = jnp.int16 if only_ct else jnp.float32  # scans with fractional intensities are float32
  arrays = {
    'image': ((batch_size, *size, len(several) or 1), image_dtype),
    'label': ((batch_size, *size), jnp.uint8),
    'window': ((batch_size, *([len(several)] if several else []), 2), jnp.float32),
  }
  shardings = sharding.batch_shardings(mesh, arrays)
  return {key: jax.ShapeDtypeStruct(*arrays[key], sharding=shardings[key]) for key in arrays}


def count_flops(config: ml_collections.ConfigDict) -> float:
  """Floating point operations of one step of the whole batch, independent of target, mesh and recomputation.

  Counted before compilation, on a program lowered for a TPU, which needs no TPU: the CPU's forms of the 3D convolution
  would also count products with zeros.
  """
  mesh = sharding.make_mesh(devices=jax.devices('cpu')[:1])
  train_step, arguments = program(config, mesh, micro_batches=1, unroll=True)
  return train_step.trace(*arguments).lower(lowering_platforms=('tpu',)).cost_analysis()['flops']
