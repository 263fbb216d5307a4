"""Averaging networks: the mean on the grid of the scan, classes by name, and runs that do not fit together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax.data import resample
from afw_jax.errors import InputError
from afw_jax.inference import averaging, segmentation
from afw_jax.inference.trained import Trained

CT = {'modality': 'CT', 'source': 'nifti'}


def network(organs=('liver', 'spleen'), *, step=lambda v, x, w: x, fingerprint=0, size=(8, 8), name='unet', **options):
  meta = {
    'config': {'eval': {'batch_size': 2}},
    'model': {'name': name, 'input_size': list(size)},
    'data': {'organs': list(organs), 'modality': 'CT', 'options': CT | options},
    'fingerprint': fingerprint,
    'step': 3,
  }
  meta['data']['modality'] = options.get('modality', 'CT')
  return Trained(step, {}, meta)


def peaked_at(shift):
  """Three classes, whose probabilities depend on the intensity."""
  return jax.jit(lambda v, x, w: jax.nn.softmax(jnp.stack([jnp.sin(x[..., 0] / 40 + shift + c) for c in range(3)], -1)))


@pytest.mark.parametrize('count', [2, 3])
def test_the_mean_of_unlike_networks_on_the_grid_of_the_scan(count):
  native, views, singles = (13, 20, 18), [], []
  rng = np.random.default_rng(0)
  grids = [((16, 16), (16, 16)), ((9, 24, 20), (4, 16, 16)), ((20, 18), (20, 18))][:count]
  for i, (size, seen) in enumerate(grids):
    plan = resample.make_resampling(native, (2.0, 1.0, 1.0), size=size, spacing=(None,) * 3, fit='resize')
    image = rng.integers(-100, 100, plan.working).astype(np.int16)
    matrices = resample.restore_matrices(plan)
    options = segmentation.Options(seen, batch_size=3)
    views.append(segmentation.View(peaked_at(2 * i), {}, image, (0, 1), matrices, options))
    singles.append(segmentation.segment_views(views[-1:], keep_probabilities=True)[1].astype(np.float32))
  labels, probabilities = segmentation.segment_views(views, keep_probabilities=True)
  expected = np.mean(singles, 0)
  np.testing.assert_allclose(probabilities.astype(np.float32), expected, atol=1e-3)
  top = np.sort(expected, -1)
  sure = top[..., -1] - top[..., -2] > 2e-3
  np.testing.assert_array_equal(labels[sure], expected.argmax(-1)[sure])
  assert sure.mean() > 0.95 and any((labels != single.argmax(-1)).mean() > 0.1 for single in singles)


def test_where_the_grid_of_one_does_not_reach_the_others_decide():
  image = np.full((2, 4, 4), 50, np.int16)
  organ = lambda v, x, w: jnp.stack([0 * x[..., 0] + 0.4, 0 * x[..., 0] + 0.6], -1)
  shifted = np.zeros((8, 4))
  shifted[2:6] = np.eye(4)
  wide = np.repeat(np.eye(4), 2, 0)
  view = lambda rows: segmentation.View(
    organ, {}, image, (0, 1), (np.eye(2), rows, np.eye(4)), segmentation.Options((4, 4))
  )
  assert (segmentation.segment_views([view(shifted), view(wide)])[0] == 1).all()
  assert (segmentation.segment_views([view(shifted), view(shifted)])[0][:, :2] == 0).all()


def test_classes_are_matched_by_name():
  step = lambda v, x, w: jnp.array([[0.1, 0.2, 0.7]])
  first, second = network(), network(('spleen', 'liver'), step=step, name='unetpp')
  one, other = averaging.alike({'a': first, 'b': second})
  assert one is first
  np.testing.assert_allclose(other.predict_step({}, None, None), [[0.1, 0.7, 0.2]])
  assert other.meta == second.meta  # what its checkpoint says


def test_networks_of_one_kind_share_a_program():
  a, b, c = (network(step=lambda v, x, w, i=i: x, fingerprint=i, name='unet' if i < 2 else 'unetpp') for i in range(3))
  one, two, three = averaging.alike({'a': a, 'b': b, 'c': c})
  assert one.predict_step is two.predict_step is a.predict_step and three.predict_step is c.predict_step


@pytest.mark.parametrize('other, axes, said', [
  (network(('liver', 'kidney')), (), 'b: has other organs than a: kidney, spleen only in one of them'),
  (network(('liver',)), (), 'b: has other organs than a: spleen only'),
  (network(modality='MR'), (), r'b: was trained on another modality \(MR\) than a \(CT\)'),
  (network(source='transunet'), (), r'another scale of intensities \(not in HU\) than a \(HU\)'),
  (network(), (), 'b: has the same checkpoint as a'),
  (network(size=(8, 8, 8)), (0,), '--mirror_axes: .0. are other axes for the slices'),
])  # fmt: skip
def test_runs_that_do_not_fit_together(other, axes, said):
  with pytest.raises(InputError, match=said):
    averaging.alike({'a': network(), 'b': other}, axes)


def test_the_record_names_every_checkpoint():
  one, two = network(), network(fingerprint=1)
  single, both = averaging.checkpoints([one], ['a']), averaging.checkpoints([one, two], ['a', 'b'])
  assert single['workdir'] == 'a' and single['step'] == 3
  assert both['average_of'][0] == single and [made['workdir'] for made in both['average_of']] == ['a', 'b']
  assert len({single['sha256'], both['sha256'], both['average_of'][1]['sha256']}) == 3
  assert averaging.option([0.5, 0.5]) == 0.5 and averaging.option([0.5, 0.7]) == [0.5, 0.7]
