"""Channels that are no files, and what is known of a scan that was joined from several."""

import os
import threading

import numpy as np
import pytest
from tiny_dataset import SHAPE, describe, geometry

from afw_jax.data.formats import channel_scans, dicom_series
from afw_jax.data.formats.volume import Volume
from afw_jax.data.sets import layouts
from afw_jax.data.sets.lookup import get_spec
from afw_jax.errors import InputErrors


def test_dicom_folders_are_refused_as_channels(tmp_path):
  """Prediction does not take them either."""
  for folder in ('images/a_0000', 'images/a_0001', 'labels'):
    (tmp_path / folder).mkdir(parents=True)
  (tmp_path / 'labels' / 'a.nii.gz').touch()
  describe(tmp_path, channel_names={'0': 'CT', '1': 'PET'})
  with pytest.raises(InputErrors, match='a_0001: is a DICOM series of one of several channels. Convert each channel'):
    layouts.find_cases(get_spec('folder', str(tmp_path)), tmp_path)


def test_notes_on_resampled_channels_are_kept():
  scans = [
    Volume(np.zeros(SHAPE, np.int16), geometry(), 'a', str(i), said) for i, said in enumerate(('', 'was tilted'))
  ]
  joined = channel_scans.joined(scans)
  assert joined.array.shape == (*SHAPE, 2) and joined.resampled == 'channel 1: was tilted'


def test_a_pipe_is_no_dicom_file_and_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  found = []
  thread = threading.Thread(target=lambda: found.append(dicom_series.is_dicom_file(tmp_path / 'pipe')), daemon=True)
  thread.start()
  thread.join(10)
  assert found == [False]
