"""make_loss: losses by name with the defaults of the public functions; and the losses import with jax alone."""

import collections
import doctest
import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import afw_jax
from afw_jax import losses
from afw_jax.errors import InputError

RNG = np.random.default_rng(0)
X = (2 * RNG.standard_normal((2, 5, 4, 4))).astype(np.float32)
Y, S = RNG.integers(0, 4, (2, 5, 4)), RNG.normal(0, 0.5, 4)
CE = losses.cross_entropy(X, Y)
SAME = [
  ('ce', {}, lambda: CE),
  ('dice', {'squared': True}, lambda: losses.dice_loss(X, Y, squared=True)),
  ('gd', {}, lambda: losses.generalised_dice_loss(X, Y)),
  ('focal', {'gamma': 3}, lambda: losses.focal_loss(X, Y, gamma=3)),
  ('tversky', {'fp_weight': 0.6, 'fn_weight': 0.4}, lambda: losses.tversky_loss(X, Y, fp_weight=0.6, fn_weight=0.4)),
  ('focal_tversky', {'gamma': 2.0}, lambda: losses.focal_tversky_loss(X, Y, gamma=2.0)),
  ('unified_focal', {'rare': [1]}, lambda: losses.unified_focal_loss(X, Y, rare=[1])),
  ('afw', {'correction': 'eq2'}, lambda: losses.afw_dice(X, Y, S, correction='eq2')),
  ('afw', {'learned_weights': False}, lambda: losses.afw_dice(X, Y, None)),
  ('afw', {'weights': 'solved'}, lambda: losses.afw_dice(X, Y, None, weights='solved')),
  ('ce_dice', {}, lambda: CE + losses.dice_loss(X, Y)),
  ('ce_dice', {'reduction': 'sum'}, lambda: CE + losses.dice_terms(X, Y).sum()),
  ('ce_dice', {'recipe': 'released'}, lambda: 0.5 * CE + 0.5 * losses.dice_loss(X, Y, squared=True)),
  (
    'ce_dice',
    {'ce_weight': 0.4, 'dice_weight': 0.6, 'squared': True},
    lambda: 0.4 * CE + 0.6 * losses.dice_loss(X, Y, squared=True),
  ),
  ('ce_dice', {'include_background': False}, lambda: CE + losses.dice_loss(X, Y, include_background=False)),
  ('ce_gd', {'gd_weight': 2.0}, lambda: CE + 2 * losses.generalised_dice_loss(X, Y)),
  ('focal_dice', {'focal_weight': 0.5}, lambda: 0.5 * losses.focal_loss(X, Y) + losses.dice_loss(X, Y)),
  ('ce_afw', {}, lambda: losses.afw_loss(X, Y, S)),
  (
    'ce_afw',
    {'recipe': 'released', 'rare': (3,), 'gamma': 0.5},
    lambda: losses.afw_loss(X, Y, S, recipe='released', rare=(3,), gamma=0.5),
  ),
  (
    'ce_afw',
    {'symmetric': True, 'reduction': 'mean'},
    lambda: losses.afw_loss(X, Y, S, symmetric=True, reduction='mean'),
  ),
  ('ce_afw', {'learned_weights': False}, lambda: losses.afw_loss(X, Y, None)),
  (
    'ce_afw',
    {'weights': 'entropic', 'tau': 0.1, 'background': 'anchored'},
    lambda: losses.afw_loss(X, Y, None, weights='entropic', tau=0.1, background='anchored'),
  ),
]


@pytest.mark.parametrize('name, options, expected', SAME, ids=[f'{n}-{o}' for n, o, _ in SAME])
def test_named_loss_is_the_function_of_that_name(name, options, expected):
  loss, terms = jax.jit(losses.make_loss(name, **options))(X, Y, S)
  assert loss.shape == () and loss.dtype == np.float32
  np.testing.assert_allclose(loss, expected(), rtol=1e-6)
  wanted = {'dice'} | ({'pull'} if name in ('dice', 'ce_dice', 'focal_dice') else set())
  wanted = {'contribution', 'dice', 'focused', 'pull', 'weight'} if 'afw' in name else wanted
  assert set(terms) == wanted and all(t.shape == (4,) for t in terms.values())
  squared = options.get('squared', options.get('recipe') == 'released')
  np.testing.assert_allclose(terms['dice'], losses.dice_terms(X, Y, squared=squared), rtol=1e-6)


def test_every_name_is_tested_and_the_papers_four_are_there():
  assert {name for name, _, _ in SAME} == set(losses.LOSSES) >= {'focal_dice', 'ce_gd', 'ce_dice', 'ce_afw'}


@pytest.mark.parametrize('name', losses.LOSSES)
def test_only_learned_weights_read_the_log_variances(name):
  grad = jax.grad(lambda s: losses.make_loss(name)(X, Y, s)[0])(jnp.asarray(S, jnp.float32))
  assert (np.asarray(grad) != 0).all() if 'afw' in name else (np.asarray(grad) == 0).all()


@pytest.mark.parametrize(
  'name, options, said',
  [
    ('ce_awf', {}, ['Did you mean', "'ce_afw'", 'focal_dice', 'unified_focal']),
    ('zzz', {}, list(losses.LOSSES)),
    (None, {}, ['ce_afw']),
    ('ce_afw', {'gama': 0.5}, ['Did you mean', "'gamma'"]),
    ('ce', {'squared': True}, ['squared', 'axis_name']),
    ('ce_afw', {'recipe': 'Paper'}, ['Did you mean', "'paper'"]),
    ('ce_afw', {'correction': 'eq5'}, ['eq5']),
    ('ce_afw', {'correction': 'None'}, ['eq2']),
    ('ce_afw', {'gamma': -1}, ['gamma']),
    ('ce_afw', {'rare': (1, -2)}, ['rare', '-2']),
    ('ce_afw', {'rare': 'liver'}, ['rare', 'liver']),
    ('ce_afw', {'learned_weights': 'no'}, ['learned_weights']),
    ('ce_afw', {'weights': 'entropy'}, ['Did you mean', "'entropic'", 'solved']),
    ('afw', {'weights': False}, ['weights', 'equal']),
    ('afw', {'background': 'fixed'}, ['background', 'anchored']),
    ('ce_afw', {'learned_weights': False, 'weights': 'solved'}, ['learned_weights', "'solved'", 'one of the two']),
    ('ce_afw', {'weights': 'solved', 'correction': None}, ['correction', "'eq2'"]),
    ('ce_afw', {'tau': 0}, ['tau']),
    ('ce_afw', {'tau': -0.25, 'weights': 'entropic'}, ['tau', '-0.25']),
    ('ce_afw', {'tau': float('inf')}, ['tau', 'inf']),
    ('ce_dice', {'reduction': 'none'}, ['reduction']),
    ('ce_gd', {'gd_weight': '1'}, ['gd_weight']),
    ('unified_focal', {'lam': 2}, ['lam']),
  ],
)
def test_bad_names_and_options_fail_when_the_loss_is_made(name, options, said):
  with pytest.raises(InputError) as error:
    losses.make_loss(name, **options)
  assert '\n' not in str(error.value) and all(words in str(error.value) for words in said), str(error.value)


def test_rare_ids_are_checked_against_the_logits():
  loss = losses.make_loss('ce_afw', rare=np.array([1, 12]))
  with pytest.raises(InputError, match='12'):
    loss(X, Y, S)


PUBLIC = [getattr(losses, name) for name in losses.__all__ if name.endswith(('_loss', '_dice', '_terms'))]
AFW = (losses.afw_dice, losses.afw_dice_terms, losses.afw_loss)


def test_an_option_has_one_default_wherever_it_is_taken():
  found = collections.defaultdict(set)
  for function in PUBLIC:
    for p in inspect.signature(function).parameters.values():
      if p.name in ('smooth', 'fp_weight', 'fn_weight') or (function in AFW and p.name != 'squared'):
        found[p.name].add(p.default)  # `squared` is False in AFW-Dice, and None in its sum, where the recipe decides
  assert found['smooth'] == {1e-5} and found['gamma'] == {0.25} and found['correction'] == {'eq6'}
  assert not {option: values for option, values in found.items() if len(values) > 1}


def test_every_public_loss_says_the_types_of_its_arguments():
  for function in [*PUBLIC, losses.cross_entropy, losses.init_log_sigma_sq, losses.make_loss, losses.deep_supervised]:
    signature = inspect.signature(function)
    lacking = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.kind is not p.VAR_KEYWORD]
    assert not lacking and signature.return_annotation is not signature.empty, (function, lacking)


def test_the_initial_log_variances_give_every_class_the_weight_one():
  s = jax.jit(losses.init_log_sigma_sq, static_argnums=0)(4)
  assert s.shape == (4,) and s.dtype == np.float32
  np.testing.assert_array_equal(losses.afw_dice_terms(X, Y, s)['weight'], np.ones(4))
  np.testing.assert_array_equal(losses.make_loss('afw')(X, Y, s)[1]['weight'], np.ones(4))


def test_docstring_example():
  result = doctest.testmod(losses)
  assert result.attempted >= 8 and result.failed == 0


def test_importable_with_jax_alone():
  code = """
import importlib.abc, sys
BLOCKED = 'flax optax orbax grain ml_collections absl nibabel pydicom h5py PIL tqdm matplotlib tensorboardX'.split()
class Block(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in BLOCKED:
      raise ImportError(name + ' is not there')
sys.meta_path.insert(0, Block())
import jax, numpy as np
from afw_jax import losses
every = jax.jit(lambda *a: [losses.make_loss(n)(*a)[0] for n in losses.LOSSES])
print([float(v) for v in every(np.zeros((1, 2, 3), np.float32), np.ones((1, 2), int), np.zeros(3))])
ours = {m for m in sys.modules if m.startswith('afw_jax') and not m.startswith('afw_jax.losses')}
assert ours == {'afw_jax', 'afw_jax.errors'}, ours
"""
  root = os.path.dirname(os.path.dirname(afw_jax.__file__))
  env = {**os.environ, 'PYTHONPATH': root}
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'nan' not in done.stdout and done.stdout.count(',') == len(losses.LOSSES) - 1
