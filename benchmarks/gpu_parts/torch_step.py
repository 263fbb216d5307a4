"""The training step in PyTorch as its users run it: autocast, channels_last, fused SGD; eager and compiled."""

import importlib
import time

from peers import MOMENTUM, RATE, loss_torch, main_head, without_dropout

from gpu_parts.item import Ready
from gpu_parts.sizes import CLASSES


def step(network, sides, batch_size, dtype, round_s, how, dry) -> Ready:
  """One network in PyTorch.

  Args:
    network: its name.
    sides: of the image.
    batch_size: samples.
    dtype: 'bfloat16' (autocast) or 'float32' (TF32, as JAX computes it by default).
    round_s: seconds of a round.
    how: 'eager' or 'compile'.
    dry: on the CPU, and compiled without Inductor.
  """
  import torch

  from gpu_parts.speed import steps_of

  begun = time.perf_counter()
  device = 'cpu' if dry else 'cuda'
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  layout = torch.channels_last if len(sides) == 2 else torch.channels_last_3d
  torch.manual_seed(0)
  make = importlib.import_module(f'torch_{network}').make
  model = without_dropout(make(CLASSES, image_size=tuple(sides))).to(device, memory_format=layout).train()
  optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
  image = torch.rand((batch_size, 1, *sides), device=device).contiguous(memory_format=layout)
  label = torch.randint(0, CLASSES, (batch_size, *sides), device=device)

  def objective(image, label):
    with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
      logits = main_head(model(image))
    return loss_torch(logits.float(), label)

  if how == 'compile':
    objective = torch.compile(objective, backend='aot_eager' if dry else 'inductor')
  losses = []

  def run(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
      optimizer.zero_grad(set_to_none=True)
      loss = objective(image, label)
      loss.backward()
      optimizer.step()
    losses.append(float(loss.detach()))  # waits for the device
    if not dry:
      torch.cuda.synchronize()
    return (time.perf_counter() - start) / count

  run(1)
  facts = {'first_step_after_s': time.perf_counter() - begun, 'torch': torch.__version__}
  facts |= {'sides': sides, 'batch_size': batch_size}
  if not dry:
    run(2)
    torch.cuda.reset_peak_memory_stats()  # without what the search for fast kernels took
  count = steps_of(round_s, run(1 if dry else 3))
  peak = lambda: None if dry else torch.cuda.max_memory_allocated() / 2**30
  return Ready(
    facts,
    lambda: run(count),
    lambda: {'peak_gib': peak(), 'first_loss': losses[0], 'last_loss': losses[-1], 'steps': count},
  )
