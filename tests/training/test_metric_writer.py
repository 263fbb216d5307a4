"""Metric records: one per step and key whenever a run was killed, and JSON that every reader takes."""

import glob
import json
import math
import struct
import time

import pytest

from afw_jax.errors import InputError
from afw_jax.training.metric_writer import MetricWriter, read_metrics


def write(folder, *records, **options):
  writer = MetricWriter(str(folder), **options)
  for step, scalars in records:
    writer.write(step, scalars)
  writer.close()


def train(*steps):
  return [(step, {'train/loss': 1 / step}) for step in steps]


def test_records_of_steps_made_again_are_removed(tmp_path):
  write(tmp_path, *train(1, 2, 3), (3, {'val/dsc': 0.5}), *train(4, 5), start_step=0)
  write(tmp_path, start_step=3)
  assert read_metrics(str(tmp_path)) == [
    *({'step': step, **scalars} for step, scalars in train(1, 2, 3)),
    {'step': 3, 'val/dsc': 0.5},
  ]


def test_a_validation_that_is_made_again_is_removed_and_the_step_it_belongs_to_is_not(tmp_path):
  write(tmp_path, *train(1, 2), (2, {'val/dsc': 0.4}), *train(3), (3, {'val/dsc': 0.5}), start_step=0)
  write(tmp_path, (3, {'val/dsc': 0.5}), start_step=3, validation_due=True)
  assert [(r['step'], *sorted(set(r) - {'step'})) for r in read_metrics(str(tmp_path))] == [
    (1, 'train/loss'),
    (2, 'train/loss'),
    (2, 'val/dsc'),
    (3, 'train/loss'),
    (3, 'val/dsc'),
  ]


def shown(folder):
  """(tag, step) of every value that TensorBoard shows: a new session removes what came from its first step on."""
  event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
  values = []
  for path in sorted(folder.glob('tensorboard/events*')):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length, its checksum, the event, its checksum
      (length,) = struct.unpack_from('<Q', data, at)
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += length + 16
      if event.session_log.status == event_pb2.SessionLog.START:
        values = [(tag, step) for tag, step in values if step < event.step]
      values += [(value.tag, event.step) for value in event.summary.value]
  return values


def test_tensorboard_shows_each_value_once(tmp_path):
  write(tmp_path, *train(1, 2), (2, {'val/dsc': 0.4}), *train(3), start_step=0)
  time.sleep(1.1)  # the second is part of the file's name
  write(tmp_path, (2, {'val/dsc': 0.4}), *train(3), start_step=2, validation_due=True)
  time.sleep(1.1)
  write(tmp_path, *train(3), start_step=2)
  assert sorted(shown(tmp_path)) == [('train/loss', 1), ('train/loss', 2), ('train/loss', 3), ('val/dsc', 2)]


def test_values_that_are_not_finite_become_null(tmp_path):
  write(tmp_path, (1, {'a': math.nan, 'b': math.inf, '胰腺': 0.5}), start_step=0)
  text = (tmp_path / 'metrics.jsonl').read_text(encoding='utf-8')
  assert json.loads(text, parse_constant=pytest.fail) == {'step': 1, 'a': None, 'b': None, '胰腺': 0.5}


def test_older_files_with_nan_are_read_and_written_anew(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "val/dsc": NaN}\n', encoding='utf-8')
  assert math.isnan(read_metrics(str(tmp_path))[0]['val/dsc'])
  write(tmp_path, start_step=1)
  assert read_metrics(str(tmp_path)) == [{'step': 1, 'val/dsc': None}]


@pytest.mark.parametrize('cut', range(1, 12))
def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path, cut):
  write(tmp_path, *train(1), (2, {'胰腺': 0.5}), start_step=0)
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-cut])  # also within a character
  assert [r['step'] for r in read_metrics(str(tmp_path))] == [1]


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='metrics.jsonl: cannot be written|file: cannot be written'):
    MetricWriter(str(tmp_path / 'file'), start_step=0)
  assert not glob.glob(str(tmp_path / '*.tmp'))
