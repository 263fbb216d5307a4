"""Reads weight files into {key: numpy array}: .safetensors and .npz without PyTorch, .pth and .pt with it."""

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from afw_jax.errors import InputError

# Keys under which training scripts save a state dict.
WRAPPERS = ('state_dict', 'model_state_dict', 'network_weights', 'model', 'net')
PREFIX = 'module.'  # of torch.nn.DataParallel


def read(path: str) -> dict[str, np.ndarray]:
  """Reads the state dict in a file.

  A dict around the state dict ({'state_dict': ..., 'epoch': ...}) and a 'module.' in front of all keys are removed.
  Nothing in the file is executed: PyTorch files are loaded with weights_only, NumPy's without pickles.

  Args:
    path: .safetensors, .npz, or a file of torch.save (.pth, .pt, .pth.tar, .bin, .model).

  Returns:
    Key -> array; bfloat16 becomes float32.

  Raises:
    InputError: the file does not exist or holds no weights, or it needs PyTorch, which is not installed.
  """
  if not os.path.isfile(path):
    raise InputError(path, 'no such file', 'Give a file of weights: .safetensors, .npz, .pth or .pt.')
  if path.endswith('.safetensors'):
    arrays = _read_safetensors(path)
  elif path.endswith('.npz'):
    arrays = _read_npz(path)
  else:
    arrays = _read_torch(path)
  if arrays and all(key.startswith(PREFIX) for key in arrays):
    arrays = {key.removeprefix(PREFIX): value for key, value in arrays.items()}
  if not arrays:
    raise InputError(path, 'holds no weights', 'Give a file with the state dict of a network.')
  return arrays


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
  arrays = _parsed(safetensors.numpy.load_file, path, path)
  return {
    key: np.asarray(value, np.float32) if value.dtype.name == 'bfloat16' else value for key, value in arrays.items()
  }


def parse_safetensors(data: bytes, where: object) -> dict[str, np.ndarray]:
  """The arrays of a .safetensors file in memory, as they are; raises InputError, naming `where`, for a damaged one."""
  return _parsed(safetensors.numpy.load, data, where)


def to_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
  """The content of a .safetensors file with these arrays."""
  return safetensors.numpy.save(arrays)


def _parsed(load: Callable, source: Any, where: object) -> dict[str, np.ndarray]:
  try:
    return load(source)
  except safetensors.SafetensorError as error:
    raise InputError(where, f'is not a complete .safetensors file ({error})', 'Copy or download it again.') from error


def _read_npz(path: str) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
    raise InputError(path, f'is not a complete .npz file of arrays ({error})', 'Copy or download it again.') from error


def _read_torch(path: str) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError:
    raise InputError(
      path,
      'can only be read with PyTorch, which is not installed',
      'Install it (pip install torch), or save the state dict as .safetensors or .npz.',
    ) from None
  try:
    with torch.serialization.safe_globals([argparse.Namespace]):  # options that scripts save with the weights
      content = torch.load(path, map_location='cpu', weights_only=True)
  except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, KeyError, zipfile.BadZipFile) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
      path,
      f'cannot be read as PyTorch weights alone ({reason})',
      'Copy it again; or, if it holds more than weights, save net.state_dict() alone.',
    ) from error
  state = _unwrap(content)
  if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
    raise InputError(path, 'does not hold a state dict', 'Save net.state_dict() with torch.save.')
  return {
    key: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy() for key, value in state.items()
  }


def _unwrap(content: Any) -> Any:
  """The innermost dict under one of the `WRAPPERS` keys."""
  while isinstance(content, dict):
    inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
    if not inner:
      break
    content = inner[0]
  return content
