"""The training step of a network, compiled for the device, with a state and a batch on it."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from spatial import make_step

from afw_jax.planning import accelerators
from gpu_parts.sizes import CLASSES

GIB = 2**30


class Step(NamedTuple):
  """A compiled training step, (state, batch, key) -> (state, aux), and what it starts from.

  Attributes:
    call: the compiled step; the state is donated.
    state: on the device.
    batch: on the device.
    key: PRNG key.
    facts: seconds to trace and compile, GiB by the compiler's count, TFLOP.
  """

  call: Any
  state: Any
  batch: dict
  key: jax.Array
  facts: dict


def trace(network: str, sides, batch_size: int, dtype: str, options: dict, loss: str = 'ce_dice'):
  """The traced training step, with abstract arguments."""
  train_step, init = make_step(network, CLASSES, None, loss=loss, dtype=dtype, **options)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(init, key, image=jax.ShapeDtypeStruct((1, *sides, 1), jnp.float32))
  batch = {
    'image': jax.ShapeDtypeStruct((batch_size, *sides, 1), jnp.float32),
    'label': jax.ShapeDtypeStruct((batch_size, *sides), jnp.int32),
  }
  return train_step.trace(state, batch, key)


def compiled(network: str, sides, batch_size: int, dtype: str, options: dict, loss: str = 'ce_dice'):
  """(the compiled step, seconds to trace and compile it, its GiB by the compiler's count)."""
  begun = time.perf_counter()
  call = trace(network, sides, batch_size, dtype, options, loss).lower().compile()
  seconds = time.perf_counter() - begun
  return call, {'compile_s': seconds, 'planned_gib': accelerators.memory(call)['total'] / GIB}


def tflop(network: str, sides, batch_size: int, options: dict) -> float | None:
  """TFLOP of a step, counted before compilation; None where the device's client does not count (CUDA).

  The program is that for a TPU, whose lowering needs no TPU.
  """
  lowered = trace(network, sides, batch_size, 'float32', options).lower(lowering_platforms=('tpu',))
  counted = lowered.cost_analysis()
  return counted['flops'] / 1e12 if counted else None


def first_state(network: str, sides, options: dict):
  """The state before the first step, made on the CPU, where compiling the initialisation takes least; on the device."""
  _, init = make_step(network, CLASSES, None, dtype='float32', **options)  # of each dtype the state is the same
  with jax.default_device(jax.devices('cpu')[0]):
    make = jax.jit(init, compiler_options={'xla_backend_optimization_level': 0})
    state = make(jax.random.key(0), image=jnp.zeros((1, *sides, 1)))
  return jax.device_put(state, jax.devices()[0])


def random_batch(sides, batch_size: int) -> dict:
  """Noise with random labels, on the device."""
  rng = np.random.default_rng(0)
  image = rng.random((batch_size, *sides, 1), np.float32)
  label = rng.integers(0, CLASSES, (batch_size, *sides), np.int32)
  return jax.device_put({'image': image, 'label': label}, jax.devices()[0])


def prepared(
  network: str, sides, batch_size: int, dtype: str, options: dict, *, count: bool = True, loss: str = 'ce_dice'
) -> Step:
  """A step that is ready to run."""
  call, facts = compiled(network, sides, batch_size, dtype, options, loss)
  facts['peak_compiling_gib'] = peak_gib()
  if count:
    facts['tflop'] = tflop(network, sides, batch_size, options)
  state, batch = first_state(network, sides, options), random_batch(sides, batch_size)
  key = jax.device_put(jax.random.key(1), jax.devices()[0])
  return Step(call, state, batch, key, facts)


def peak_gib() -> float | None:
  """The most GiB that were in use on the device; None where it does not say."""
  memory = jax.devices()[0].memory_stats() or {}
  return memory['peak_bytes_in_use'] / GIB if 'peak_bytes_in_use' in memory else None


def device() -> str:
  return jax.devices()[0].device_kind
