"""Golden networks: weights computed from the keys of PyTorch, an input, and the logits of the reference implementation.

The logits are those of a float32 computation in PyTorch and stored as float32, so that they have rounding errors of
their own: up to 1.5e-5 of the standard deviation for the 3D U-Net, 7e-6 and less for the others. A network in float32
adds its own, which depend on CPU and compiler; in float64 it adds none that matter.
"""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / 'golden'


def weight(key: str, shape) -> np.ndarray:
  """The value of one key of a golden state dict."""
  z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
  if key.endswith('running_var'):
    return np.exp(0.2 * z)
  if 'temperature' in key:
    return 1 + 0.1 * z
  if len(shape) == 1:
    return 1 + 0.1 * z if key.endswith('weight') else 0.1 * z
  if len(shape) == 3 and shape[0] == 1:
    return 0.1 * z
  return z / np.float32(np.sqrt(np.prod(shape[1:])))


def load(name: str) -> tuple[dict, dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
  """(NAME.json, state dict, image channels last, NAME.npz)."""
  meta = json.loads((FOLDER / f'{name}.json').read_text(encoding='utf-8'))
  state_dict = {key: weight(key, shape) for key, shape in meta['state_dict'].items()}
  image = np.random.default_rng(2024).random(meta['input_shape_channels_last'], dtype=np.float32)
  with np.load(FOLDER / f'{name}.npz') as file:
    return meta, state_dict, image, dict(file)


def worst_error(logits, golden: dict[str, np.ndarray], key: str = 'eval') -> float:
  """Largest difference to the golden logits under `key`, as a share of their standard deviation."""
  wanted = golden[key]
  found = np.asarray(logits, np.float64).reshape(-1)[golden[f'{key}_index']].reshape(wanted.shape)
  return float(np.abs(found - wanted).max() / wanted.std())
