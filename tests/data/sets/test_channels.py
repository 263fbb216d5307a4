"""The channels of a data set by the options of its store, and what is done for each of them."""

import numpy as np

from afw_jax.data.sets import channels, intensities

ONE = {'modality': 'CT', 'source': 'nifti'}
PET_CT = {**ONE, 'channels': [['PET', 'MR'], ['CT', 'CT']]}
T1_T2 = {'modality': 'MR', 'source': 'nifti', 'channels': [['T1', 'MR'], ['T2', 'MR']]}


def test_the_measured_channel_is_the_first_in_hu():
  measured = [channels.measured(options) for options in (ONE, PET_CT, T1_T2)]
  assert [(c.place, c.in_hu) for c in measured] == [(None, True), (1, True), (0, False)]
  assert [channels.count(options) for options in (ONE, PET_CT, T1_T2)] == [1, 2, 2]
  assert channels.count({**ONE, 'channels': None}) == 1  # as a model file may have it


def test_one_channel_has_no_axis_and_no_name():
  (channel,) = channels.of(ONE)
  array = np.zeros((2, 3, 4))
  assert channel.voxels(array) is array and channel.of('value') == 'value' and channel.said('note') == 'note'
  assert channels.joined(['a']) == 'a' and channels.stacked([array]) is array
  assert channels.each(lambda one: one, array) is array and channels.shown(array, (0, 1))[0] is array


def test_each_channel_by_itself():
  array = np.stack([np.full((2, 3, 4), 5), np.full((2, 3, 4), 7)], -1)
  doubled = channels.each(lambda one: 2 * one[:1], array)
  assert doubled.shape == (1, 3, 4, 2) and doubled[..., 0].max() == 10 and doubled[..., 1].min() == 14
  pet, ct = channels.of(PET_CT)
  assert pet.voxels(array).max() == 5 and ct.of(['a', 'b']) == 'b'
  assert ct.said('is odd') == 'channel 1 (CT): is odd'
  image, window = channels.shown(array, [(0, 9), (1, 2)])
  assert image.shape == (2, 3, 4) and image.max() == 5 and window == (0, 9)


def test_notes_name_the_channel_and_follow_its_kind():
  rng = np.random.default_rng(0)
  bright = rng.normal(500, 100, (4, 40, 40))  # usual in MR; as HU it has no air and too much bone
  array = np.stack([bright, bright], -1).astype(np.float32)
  of = channels.of(PET_CT)
  described = intensities.describe_channels(array, of)
  notes = intensities.notes_on_channels(described, [(200, 800)] * 2, of)
  assert len(described) == 2 and notes and all(note.startswith('channel 1 (CT): ') for note in notes)
  usual = [intensities.usual_of([(described[0], (200, 800))], False), None]
  assert notes == intensities.notes_on_channels(described, [(200, 800)] * 2, of, usual)
  brighter = intensities.describe_channels(array + 1000, of)
  found = intensities.notes_on_channels(brighter, [(200, 800)] * 2, of, usual)
  assert any(note.startswith('channel 0 (PET): the body is unlike that of the training scans') for note in found)
