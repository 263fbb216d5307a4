"""Files of PyTorch weights -> {key: numpy array}: .safetensors and .npz need no PyTorch, .pth and .pt do."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import safetensors
import safetensors.numpy

from afw_jax.errors import InputError

WRAPPERS = (
  'state_dict',
  'model_state_dict',
  'network_weights',
  'model',
  'net',
)  # what training scripts put around a state dict
PREFIX = 'module.'  # of DataParallel


def read(path: str) -> dict[str, np.ndarray]:
  """The state dict in a file, without a training script's wrapping.

  A wrapping dict ({'state_dict': ..., 'epoch': ...}) is taken off, and 'module.' in front of every key. Nothing in the
  file is executed: PyTorch files are loaded with weights_only, NumPy's without pickles.

  Args:
    path: .safetensors, .npz, or PyTorch's own (.pth, .pt, .pth.tar, .bin, .model).

  Returns:
    Key -> array; 16-bit brain floats become float32.

  Raises:
    InputError: no such file, not a file of weights, or PyTorch is needed and missing.
  """
  if not os.path.isfile(path):
    raise InputError(path, 'no such file', 'Give a file of weights: .safetensors, .npz, .pth or .pt.')
  if path.endswith('.safetensors'):
    arrays = _safetensors(path)
  elif path.endswith('.npz'):
    arrays = _npz(path)
  else:
    arrays = _torch(path)
  if arrays and all(key.startswith(PREFIX) for key in arrays):
    arrays = {key.removeprefix(PREFIX): value for key, value in arrays.items()}
  if not arrays:
    raise InputError(path, 'holds no weights', 'Give the state dict of a network.')
  return arrays


def _safetensors(path):
  try:
    return {
      key: np.asarray(value, np.float32) if value.dtype.name == 'bfloat16' else value
      for key, value in safetensors.numpy.load_file(path).items()
    }
  except safetensors.SafetensorError as error:
    raise InputError(path, f'is no whole .safetensors file ({error})', 'Copy or download it again.') from error


def _npz(path):
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
    raise InputError(path, f'is no whole .npz file of arrays ({error})', 'Copy or download it again.') from error


def _torch(path):
  try:
    import torch
  except ImportError:
    raise InputError(
      path,
      'a file of PyTorch needs PyTorch to be read, which is not installed',
      'Install it (pip install torch), or save the state dict as .safetensors or .npz.',
    ) from None
  try:
    with torch.serialization.safe_globals(
      [argparse.Namespace]
    ):  # training scripts keep their options beside the weights
      content = torch.load(path, map_location='cpu', weights_only=True)
  except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, KeyError, zipfile.BadZipFile) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
      path,
      f'cannot be read as PyTorch weights only ({reason})',
      'Copy it again; or, where it holds more than weights, save net.state_dict() alone.',
    ) from error
  while isinstance(content, dict) and (
    inner := [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
  ):
    content = inner[0]
  if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
    raise InputError(path, 'holds no state dict', 'Save net.state_dict() with torch.save.')
  return {
    key: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy() for key, value in content.items()
  }
