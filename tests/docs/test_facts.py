"""The tables and lists of the documentation and the comments of the default config name what the code knows."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from doc_pages import PAGES, ROOT, blocks, codes, prose, read, table
from test_architecture import LAYERS, OWNERS, PACKAGE

from afw_jax import losses, metrics, models
from afw_jax.config import default_config, shipped
from afw_jax.data.sets import lookup, public, window
from afw_jax.options import MODES

# Options of every network, and the kernel of attention, which no config holds.
COMMON = ('num_classes', 'size', 'dtype', 'remat', 'constrain', 'attend')


def comment_of(key: str) -> str:
  """The comment above and behind an assignment in the default config."""
  text = read('afw_jax/config/defaults.py')
  (comment,) = re.findall(rf'((?:^ *# .*\n)*^ *{re.escape(key)} = .*?# .*)$', text, re.M)
  return comment


@pytest.mark.parametrize('key, known', [
  ('evaluation.convention', metrics.UNITS),
  ('evaluation.split', ('train', 'val', 'test')),
  ('data.dataset', lookup.NAMES),
  ('data.window', (*window.NAMED_HU, 'percentile')),
  ('model.name', models.MODELS),
])  # fmt: skip
def test_comments_of_the_default_config_name_every_choice(key, known):
  words = re.findall(r'\w+', comment_of(key))
  assert [name for name in known if name not in words] == []


@pytest.mark.parametrize('page', [page for page in PAGES if page != 'CONTRIBUTING.md'])
def test_a_page_that_names_a_convention_of_others_names_all(page):
  named = {name for name in metrics.UNITS if f'`{name}`' in prose(page)} - {'transunet', 'unetrpp'}  # networks too
  if 'monai' in named:
    assert set(metrics.UNITS) <= set(codes(prose(page)))


def test_conventions():
  rows = table('docs/metrics.md', '`--config.eval.convention`')
  assert [(codes(row[0])[0], row[1]) for row in rows] == list(metrics.UNITS.items())


def test_scores():
  assert tuple(codes(row[0])[0] for row in table('docs/metrics.md', 'key')) == metrics.SCORES


def test_losses():
  rows = table('docs/the-loss.md', 'name')
  assert tuple(codes(row[0])[0] for row in rows) == losses.LOSSES
  for name, options in ((codes(row[0])[0], codes(row[2])) for row in rows):
    assert set(options) == set(losses.loss_options(name)) - {'axis_name'}, name


def test_options_of_the_loss():
  defaults = {k: p.default for k, p in inspect.signature(losses.afw_loss).parameters.items()}
  rows = {name: row[1] for row in table('docs/the-loss.md', 'option') for name in codes(row[0])}
  of_the_recipe = {'recipe', 'ce_weight', 'dice_weight', 'squared'}
  assert set(rows) == set(defaults) - {'logits', 'labels', 'log_sigma_sq'} - of_the_recipe
  for name, shown in rows.items():
    (shown,) = codes(shown) or [shown]
    assert eval(shown) == defaults[name], name


def test_networks():
  assert tuple(codes(row[0])[0] for row in table('docs/networks.md', '`--config.model.name`')) == models.MODELS
  assert {codes(row[0])[0] for row in table('docs/conversion.md', 'network')} == set(models.MODELS)
  for name, options in ((codes(row[0])[0], codes(row[1])) for row in table('docs/networks.md', 'network')):
    parameters = inspect.signature(models.module_of(name).make).parameters
    shown = dict(option.partition('=')[::2] for option in options if re.match(r'[a-z]\w*(=|$)', option))
    assert set(shown) == set(parameters) - set(COMMON), name
    for option, default in shown.items():
      assert not default or eval(default) == parameters[option].default, (name, option)


def test_sizes_of_networks():
  text = prose('docs/networks.md').split('## Size, work and memory')[1]
  rows = re.findall(r'^\| (\w+) \| ([\dx ]+) \| (\d+) \| ([\d,]+) \|', text, re.M)
  assert {name for name, *_ in rows} == set(models.MODELS)
  for name, image, classes, parameters in rows:
    image = jax.ShapeDtypeStruct((1, *map(int, image.split(' x '))), jnp.float32)
    variables = jax.eval_shape(models.build(name, int(classes)).init, jax.random.key(0), image)
    assert f'{sum(leaf.size for leaf in jax.tree.leaves(variables["params"])):,}' == parameters, (name, image.shape)


def test_data_sets():
  rows = table('docs/data-sets.md', 'config')
  sets = {name for row in rows for name in codes(row[1])}
  assert sets == set(lookup.NAMES) - {'folder'}
  assert {name for row in rows for name in codes(row[0])} <= set(shipped.names())
  assert len(public.ABDOMENCT1K.defects) == 22
  for row in rows:
    organs = {organ.strip().replace(' ', '_') for organ in row[3].replace(' and right kidney', '_kidney, right kidney')
              .replace('right and left kidney', 'right kidney, left kidney').split(',')}  # fmt: skip
    assert organs == set(lookup.get_spec(codes(row[1])[0]).organs), row[1]


def test_modes_and_sections():
  assert {codes(row[0])[0] for row in table('docs/running.md', '`--mode`')} == set(MODES)
  assert {codes(row[0])[0] for row in table('docs/running.md', 'section')} | {'seed'} == set(default_config())


def test_the_tree_of_the_package_is_complete():
  (tree,) = [b.text for b in blocks('docs/architecture.md', 'text') if b.text.startswith('afw_jax/')]
  named = set(re.findall(r'[\w./]+(?:\.py|/)(?=\s|$)', tree))
  folders = {f'{path.parent.name}/' for path in PACKAGE.rglob('__init__.py')}
  modules = {path.name for path in PACKAGE.glob('*.py')} - {'__init__.py'}
  assert modules <= named, modules - named
  assert folders - {'layers/'} <= named, folders - named
  inside = {name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / 'tests'))}
  assert inside <= folders | modules, inside


def test_the_layers_are_those_of_the_test():
  rows = {row[0]: codes(row[1]) for row in table('docs/architecture.md', 'layer')}
  assert set(rows) == set(LAYERS)
  for layer, named in rows.items():
    assert set(named) - {'data.sets'} <= set(LAYERS[layer]), layer
  modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == '.py' or (path / '__init__.py').exists()}
  assert modules - {'__init__'} == {name.split('.')[0] for named in rows.values() for name in named}
  sentences = prose('docs/architecture.md').split('Foreign libraries have owners')[1].split('\n\n')[0]
  owned = re.findall(r'`([\w.]+)`', sentences)
  several = ('flax', 'optax', 'ml_collections', 'absl', 'distributed')  # not of one file, or Dask's
  assert set(owned) == {owner for library in OWNERS.keys() - several for owner in OWNERS[library]}
