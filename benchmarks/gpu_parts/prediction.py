"""Prediction of a whole CT of 512 x 512 x 300: by slices, and by sliding windows in turns with MONAI's."""

import importlib.util
import statistics
import time

from gpu_parts import sizes
from gpu_parts.item import Item, Ready, Side, Work, markdown
from gpu_parts.sizes import CLASSES

PART, TITLE = 'predict', 'Prediction of one scan'
FULL = {'slices': (300, 512, 512), 'side': 224, 'patch': (128, 128, 128)}
TINY = {'slices': (10, 40, 40), 'side': 32, 'patch': (64, 32, 32)}


def items(work: Work) -> list[Item]:
  found, rounds, size = [], 1 if work.dry else 2, TINY if work.dry else FULL
  if work.chosen(['unet']):
    options = {'shape': size['slices'], 'side': size['side'], 'dry': work.dry}
    found.append(Item(PART, 'unet', {'ours': Side('gpu_parts.prediction:slices', options, 120)}, rounds=rounds))
  if work.chosen(['unet3d']):
    shape = (64, 40, 40) if work.dry else size['slices']
    options = {'shape': shape, 'patch': size['patch'], 'dry': work.dry}
    sides = {'ours': Side('gpu_parts.prediction:windows', options, 180)}
    if all(importlib.util.find_spec(name) for name in ('torch', 'monai', 'dynamic_network_architectures')):
      sides['monai'] = Side('gpu_parts.prediction:monai_windows', options, 120)
    found.append(Item(PART, 'unet3d', sides, rounds=rounds, least_s=60))
  return found


def _ready(network: str, shape, patch, matrices, batch_size: int, dry: bool) -> Ready:
  """Predicts random intensities with random weights; a round is a whole scan, from and to the host."""
  import jax
  import numpy as np

  from afw_jax import models
  from afw_jax.inference import forward, segmentation
  from gpu_parts import steps

  begun = time.perf_counter()
  options = sizes.small(network) if dry else {}
  state = steps.first_state(network, patch, options)
  variables = {'params': state.params['net'], 'batch_stats': state.batch_stats}
  model = models.build(network, CLASSES, dtype='bfloat16', **options)
  predict_step = jax.jit(forward.make_predict_step(model))
  image = np.random.default_rng(0).integers(-200, 400, shape).astype(np.int16)
  how = segmentation.Options(tuple(patch), batch_size)

  def run() -> float:
    start = time.perf_counter()
    labels, _ = segmentation.segment(predict_step, variables, image, (50.0, 350.0), matrices, how)
    if labels.shape != tuple(len(m) for m in matrices):
      raise ValueError(f'labels of {labels.shape}')
    return time.perf_counter() - start

  run()
  facts = {'first_s': time.perf_counter() - begun, 'device': steps.device()}
  return Ready(facts, run, lambda: {'peak_gib': steps.peak_gib()})


def slices(shape, side: int, dry: bool) -> Ready:
  """A UNet over slices of side x side; its probabilities are interpolated to the grid of the scan."""
  import numpy as np

  from afw_jax.data.resample import zoom_matrix

  matrices = (np.eye(shape[0]), *(zoom_matrix(side, n, 1) for n in shape[1:]))
  return _ready('unet', (shape[0], side, side), (side, side), matrices, 8 if dry else 24, dry)


def windows(shape, patch, dry: bool) -> Ready:
  """A 3D U-Net in sliding windows that overlap by half."""
  import numpy as np

  return _ready('unet3d', shape, patch, tuple(np.eye(n) for n in shape), 1 if dry else 4, dry)


def monai_windows(shape, patch, dry: bool) -> Ready:
  """The same by MONAI, with the PyTorch network under autocast."""
  import numpy as np
  import torch
  import torch_unet3d
  from monai.inferers import sliding_window_inference

  begun = time.perf_counter()
  device = 'cpu' if dry else 'cuda'
  torch.backends.cudnn.benchmark = True
  model = torch_unet3d.make(CLASSES).to(device, memory_format=torch.channels_last_3d).eval()
  scan = np.random.default_rng(0).integers(-200, 400, shape).astype(np.int16)

  def run() -> float:
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
      image = (torch.from_numpy(scan).to(device).float()[None, None].clamp(50, 350) - 50) / 300
      logits = sliding_window_inference(image, tuple(patch), 1 if dry else 4, model, overlap=0.5, mode='gaussian')
      logits.argmax(1).to(torch.uint8).cpu().numpy()
    return time.perf_counter() - start

  run()
  peak = lambda: None if dry else torch.cuda.max_memory_allocated() / 2**30
  return Ready({'first_s': time.perf_counter() - begun}, run, lambda: {'peak_gib': peak()})


def table(records: dict[str, dict], facts: dict) -> list[str]:
  rows = []
  for name, record in records.items():
    for side, found in record['sides'].items():
      if 'failed' in found:
        rows.append([name, side, f'failed: {found["failed"]}', '', ''])
      else:
        peak = found['peak_gib']
        times = [f'{statistics.median(found["rounds"]):.2f}', f'{found["first_s"]:.1f}']
        rows.append([name, side, *times, f'{peak:.2f}' if peak else ''])
  return markdown(['network', 'side', 'seconds a scan', 'first scan after s', 'peak GiB'], rows)
