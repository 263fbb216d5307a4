"""The training program of a config: the jitted train step on a mesh, and the state that it starts from."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from afw_jax import models
from afw_jax.config import build
from afw_jax.distributed import sharding
from afw_jax.training import accumulation, step


@dataclasses.dataclass(frozen=True)
class Program:
  """Network, loss and optimizer of a config as one program on a mesh.

  Attributes:
    mesh: data x spatial.
    model: the Linen module.
    model_options: the options it was built with, as plain JSON.
    input_size: spatial shape of a sample.
    channels: of a sample.
    schedule: step -> learning rate.
    init: (key, image (1, *S, channels)) -> fresh state; not jitted.
    train_step: jitted, (state, batch, key) -> (state, aux); the state is donated.
  """

  mesh: jax.sharding.Mesh
  model: Any
  model_options: dict
  input_size: tuple[int, ...]
  channels: int
  schedule: Callable
  init: Callable[..., step.TrainState]
  train_step: Callable

  def _image_shape(self) -> tuple[int, ...]:
    return 1, *self.input_size, self.channels

  def abstract_state(self) -> step.TrainState:
    """Shapes, dtypes and shardings of the state: every device holds all of it."""
    everywhere = sharding.replicated(self.mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(self.init, key, image=jax.ShapeDtypeStruct(self._image_shape(), jnp.float32))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), state)

  def initial_state(self, key: jax.Array) -> step.TrainState:
    """A fresh state on the mesh, which is made on the CPU: that of process 0, where there are several.

    There its program compiles in seconds; for a GPU the one of UNet takes half a minute. Where JAX_PLATFORMS leaves
    CPUs out, the default device makes it.
    """
    # Runs once: optimising its compilation would delay the first step. It is always made in this way, since another
    # level of optimisation may round the last bit otherwise.
    init = jax.jit(self.init, compiler_options={'xla_backend_optimization_level': 0})
    with jax.default_device(_cpu()):
      state = init(key, image=jnp.zeros(self._image_shape(), jnp.float32))
    return sharding.replicate(jax.device_get(state), self.mesh)


def _cpu() -> jax.Device | None:
  """A CPU device of this process; None, the default device, where JAX_PLATFORMS leaves CPUs out."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return None


def make_program(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  class_names: tuple[str, ...],
  steps_per_epoch: int,
  *,
  channels: int = 1,
  micro_batches: int | None = None,
  unroll: bool | None = None,
  attend: Callable | None = None,
) -> Program:
  """Builds the program that `train.train` runs and `planning.plan` compiles.

  Args:
    config: of the run.
    mesh: data x spatial; its devices need not be there as long as nothing is run.
    class_names: background included.
    steps_per_epoch: for the learning rate.
    channels: of the scans.
    micro_batches: instead of train.micro_batches.
    unroll: of `accumulation.value_and_grad`.
    attend: computes self-attention, instead of `layers.attention.attend`.

  Raises:
    InputError: the config cannot be trained on this mesh.
  """
  micro_batches = micro_batches or config.train.micro_batches
  more = {'attend': attend} if attend is not None and models.takes(config.model.name, 'attend') else {}
  model, model_options = build.network(config, len(class_names), constrain=sharding.make_constrain(mesh), **more)
  build.check_mesh(config, mesh, model)
  accumulation.check(micro_batches, config.train.batch_size, mesh.shape['data'])
  input_size = build.input_size(config)
  schedule = build.schedule(config, steps_per_epoch)
  tx = build.sgd(config, schedule, len(class_names))
  train_step = step.make_train_step(
    model,
    build.loss(config, model, class_names),
    tx,
    build.preprocessing(config, mesh),
    micro_batches=micro_batches,
    unroll=unroll,
  )
  train_step = models.at_precision(config.runtime.matmul_precision, train_step)
  everywhere = sharding.replicated(mesh)
  return Program(
    mesh=mesh,
    model=model,
    model_options=model_options,
    input_size=input_size,
    channels=channels,
    schedule=schedule,
    init=functools.partial(step.init_state, model, tx, num_classes=len(class_names)),
    train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(everywhere, everywhere)),
  )
