"""Cases of a store that stay open, as many as the system allows, and are compared when they are opened again."""

import numpy as np
import pytest
from test_pipeline import alike, put_case

from afw_jax.data import cases, store
from afw_jax.data.pipeline import SliceSource
from afw_jax.errors import InputError


def test_a_case_that_is_prepared_again_during_the_training_is_noticed(tmp_path, monkeypatch):
  monkeypatch.setattr(cases, '_most_open', lambda arrays: 1)
  for case_id in ('a', 'b'):
    put_case(tmp_path, case_id, np.zeros((1, 4, 5), np.int16))
  source = SliceSource(tmp_path, ['a', 'b'], alike('a', 'b'))
  put_case(tmp_path, 'a', np.zeros((1, 4, 5), np.int16))  # the same again
  assert source.read([0, 1])['image'].max() == 0
  put_case(tmp_path, 'a', np.ones((1, 4, 5), np.int16))
  with pytest.raises(InputError, match='cases/a: has been prepared again from other files while'):
    source.read([0])


def test_many_cases_need_few_open_files(tmp_path, monkeypatch):
  monkeypatch.setattr(cases, '_most_open', lambda arrays: 2)
  for i in range(6):
    put_case(tmp_path, f'c{i}', np.full((2, 4, 5), i, np.int16))
  ids = [f'c{i}' for i in range(6)]
  source = SliceSource(tmp_path, ids, alike(*ids))
  assert source.read(range(12))['image'][:, 0, 0, 0].tolist() == [i // 2 for i in range(12)]
  assert source.cases.open.cache_info().currsize == 2


def test_a_thousand_cases_stay_open_where_the_system_allows_it(tmp_path, monkeypatch):
  for case_id in 'ab':
    put_case(tmp_path, case_id, np.zeros((2, 4, 5), np.int16))
  monkeypatch.setattr(cases.resources, 'open_files', lambda: 2400)
  assert SliceSource(tmp_path, ['a', 'b'], alike('a', 'b')).cases.open.cache_info().maxsize > 1000
  monkeypatch.setattr(cases.resources, 'open_files', lambda: 10)
  assert SliceSource(tmp_path, ['a', 'b'], alike('a', 'b')).cases.open.cache_info().maxsize == 64
  opened = []
  monkeypatch.setattr(
    store, 'read_case', lambda *args, read=store.read_case, **kw: opened.append(args[1]) or read(*args, **kw)
  )
  source = SliceSource(tmp_path, ['a', 'b'], alike('a', 'b'))
  for _ in range(3):
    source.read(range(4))
  assert opened == ['a', 'b']
