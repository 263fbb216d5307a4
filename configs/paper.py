"""The tables of the paper, and its Figures 3 to 7, each by one command.

    afw-jax --mode=paper --config=paper:table1 --config.synapse.data.root=data/synapse --workdir=runs/paper
    afw-jax --mode=paper --config=paper:table1,phantom --workdir=runs/paper_phantom

After the colon: table1 to table6, figure3 to figure7, all (these eleven), losses (a comparison of losses on the MR
scans of CHAOS), or several of them, separated by commas; with phantom, small networks on synthetic scans take the place
of everything, which shows in minutes that all of it works. Each data set has a section with its whole recipe, which can
be changed for all of its runs: --config.synapse.train.epochs=10. docs/paper.md says more.
"""

from ml_collections import ConfigDict

from afw_jax.config import default_config, shipped
from afw_jax.paper import tables

# Section -> the shipped config that it starts from.
RECIPES = {
  'synapse': 'synapse',
  'abdomenct1k': 'abdomenct1k',
  'abdomenct1k_3d': 'abdomenct1k_3d:unetr',
  'chaos': 'abdomenct1k',
  'chaos_mr': 'chaos',
}
PHANTOMS = {name: 'demo_3d' if name.endswith('_3d') else 'demo' for name in RECIPES}


def get_config(variant: str = 'table1'):
  """The tables that are asked for, and the recipe of each data set that they need."""
  names = [name.strip() for name in variant.split(',')]
  phantom = 'phantom' in names
  config = ConfigDict()
  config.paper = dict(
    tables=','.join(name for name in names if name != 'phantom') or 'table1',
    phantom=phantom,
    recipes=PHANTOMS if phantom else RECIPES,
    # Files of published encoder weights for Table 5; '' = none.
    pretrained=dict(transunet='', vatransunet=''),
    # Organs in the order in which Figure 4 focuses them: the paper does not say which it left out.
    focus='pancreas,left_kidney,spleen,liver' if phantom else 'pancreas,kidney,spleen,liver',
    # The variant `losses`: folds of the cross-validation; losses that are also trained at other learning rates; the
    # best ones, best first, which are trained with more seeds and (the first) for longer, '' = not known yet. The names
    # of the losses are in afw_jax/paper/study.py.
    folds=2 if phantom else 4,
    rates='ce_dice,ce_dice_sum,afw,entropic',
    best='',
  )
  needed = dict.fromkeys(section for name in tables.expand(config.paper.tables) for section in tables.SECTIONS[name])
  for section in needed:
    config[section] = _phantom(section) if phantom else _recipe(section)
  return config


def _recipe(section: str):
  """The shipped config of a data set, with what the tables need beyond it."""
  config = shipped.load(RECIPES[section])
  if section == 'chaos':  # the paper's own CT scans of CHAOS, with four organs, were never published
    config.data.dataset, config.data.root = 'chaos4', 'data/chaos4'
    config.data.num_cases = 0
  if section == 'chaos_mr':  # about two minutes on two cores for each training
    config.data.size = (96, 96)
    config.model.unet.features = (8, 16, 32, 64, 128)
    config.train.batch_size = 8
    config.eval.num_pictures = 1
    config.train.steps_per_epoch = 25
    config.train.epochs = 20
    _score_held_out_fold(config)
  return config


def _phantom(section: str):
  """Small networks, trained for a moment on a few synthetic scans; their folder is in the workdir."""
  config = shipped.load(PHANTOMS[section])
  config.loss = default_config().loss  # the paper's, not what is recommended
  config.data.root = ''
  config.data.size = (16, 32, 32) if section.endswith('_3d') else (32, 32)
  config.data.spacing_mm = ()
  config.data.fit = 'resize'
  config.model.size = 'testing'
  config.model.unet.features = ()
  config.train.batch_size = 2 if section.endswith('_3d') else 8
  config.train.epochs = 2
  config.train.steps_per_epoch = 4
  config.train.validate_every_epochs = 2
  config.eval.num_pictures = 1
  if section == 'chaos_mr':
    _score_held_out_fold(config)
  return config


def _score_held_out_fold(config) -> None:
  """The last checkpoint is scored, so that the scans of the held-out fold choose nothing."""
  config.eval.split, config.eval.checkpoint = 'val', 'last'
  config.train.validate_every_epochs = 1000
