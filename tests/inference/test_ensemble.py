"""Networks that are averaged: classes by name, programs that are shared, and runs that do not fit together."""

import jax.numpy as jnp
import numpy as np
import pytest

from afw_jax.errors import InputError
from afw_jax.inference import ensemble
from afw_jax.inference.network import Trained

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


def test_classes_are_matched_by_name():
  step = lambda v, x, w: jnp.array([[0.1, 0.2, 0.7]])
  first, second = network(), network(('spleen', 'liver'), step=step, name='unetpp')
  one, other = ensemble.alike({'a': first, 'b': second})
  assert one is first
  np.testing.assert_allclose(other.predict_step({}, None, None), [[0.1, 0.7, 0.2]])
  assert other.meta == second.meta  # what its checkpoint says


def test_networks_of_one_kind_share_a_program():
  a, b, c = (network(step=lambda v, x, w, i=i: x, fingerprint=i, name='unet' if i < 2 else 'unetpp') for i in range(3))
  one, two, three = ensemble.alike({'a': a, 'b': b, 'c': c})
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
    ensemble.alike({'a': network(), 'b': other}, axes)


def test_the_record_names_every_checkpoint():
  one, two = network(), network(fingerprint=1)
  single, both = ensemble.checkpoints([one], ['a']), ensemble.checkpoints([one, two], ['a', 'b'])
  assert single['workdir'] == 'a' and single['step'] == 3
  assert both['average_of'][0] == single and [made['workdir'] for made in both['average_of']] == ['a', 'b']
  assert len({single['sha256'], both['sha256'], both['average_of'][1]['sha256']}) == 3
  assert ensemble.option([0.5, 0.5]) == 0.5 and ensemble.option([0.5, 0.7]) == [0.5, 0.7]
