"""Weight files: their arrays are read, damaged files are refused, and nothing in them is executed."""

import argparse
import os
import sys

import numpy as np
import pytest
import safetensors.numpy

from afw_jax.errors import InputError
from afw_jax.weights import files

WEIGHTS = {'head.weight': np.arange(6, dtype=np.float32).reshape(2, 3), 'head.bias': np.ones(2, np.float32)}


def same(found):
  assert set(found) == set(WEIGHTS)
  for key, value in WEIGHTS.items():
    np.testing.assert_array_equal(found[key], value)


def test_safetensors_and_npz_come_back_and_data_parallels_prefix_goes(tmp_path):
  safetensors.numpy.save_file(WEIGHTS, tmp_path / 'a.safetensors')
  np.savez(tmp_path / 'a.npz', **WEIGHTS)
  np.savez(tmp_path / 'b.npz', **{f'module.{key}': value for key, value in WEIGHTS.items()})
  for name in ('a.safetensors', 'a.npz', 'b.npz'):
    same(files.read(str(tmp_path / name)))


def test_pytorch_files_in_their_wrappings(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  state = {key: torch.from_numpy(value) for key, value in WEIGHTS.items()}
  for i, content in enumerate(
    (
      state,
      {'state_dict': state, 'epoch': 3},
      {'model': {'state_dict': state}},
      {f'module.{key}': value for key, value in state.items()},
      {'state_dict': {key: torch.nn.Parameter(v) for key, v in state.items()}, 'args': argparse.Namespace(lr=1)},
    )
  ):
    torch.save(content, tmp_path / f'{i}.pth')
    same(files.read(str(tmp_path / f'{i}.pth')))


@pytest.mark.parametrize('name', ['w.safetensors', 'w.npz'])
def test_torn_and_foreign_files_are_refused_by_name(tmp_path, name):
  path = tmp_path / name
  with pytest.raises(InputError, match=f'{name}.*no such file'):
    files.read(str(path))
  if name == 'w.npz':
    np.savez(path, **WEIGHTS)
  else:
    safetensors.numpy.save_file(WEIGHTS, path)
  whole = path.read_bytes()
  for content in (b'', b'not weights at all', whole[: len(whole) // 2]):
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
      files.read(str(path))


def test_a_pickle_in_an_npz_is_not_executed(tmp_path):
  class Bomb:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'executed'),)

  np.savez(tmp_path / 'bomb.npz', weight=np.array([Bomb()], dtype=object))
  with pytest.raises(InputError, match='bomb.npz'):
    files.read(str(tmp_path / 'bomb.npz'))
  assert not (tmp_path / 'executed').exists()


def test_without_pytorch_its_files_name_the_way_out(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'w.pth').write_bytes(b'x')
  with pytest.raises(InputError, match='w.pth.*PyTorch.*safetensors'):
    files.read(str(tmp_path / 'w.pth'))


def test_pytorch_files_with_code_in_them_are_refused(tmp_path):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')

  class Bomb:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'executed'),)

  torch.save({'state_dict': Bomb()}, tmp_path / 'bomb.pth')
  with pytest.raises(InputError, match='bomb.pth.*state_dict'):
    files.read(str(tmp_path / 'bomb.pth'))
  assert not (tmp_path / 'executed').exists()
