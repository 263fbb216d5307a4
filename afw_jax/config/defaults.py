"""What every config starts from: the paper's training (section 3.1). A config file changes what differs."""

import ml_collections
from ml_collections import config_dict


def default_config() -> ml_collections.ConfigDict:
  """All keys with their defaults. Change any on the command line: --config.train.epochs=10."""
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.data = data = ml_collections.ConfigDict()
  data.dataset = 'synapse'  # synapse chaos_ct chaos_mr_t1in chaos_mr_t1out chaos_mr_t2 chaos4 abdomenct1k folder
  data.root = 'data/synapse'  # where the raw scans are
  data.store = ''  # where prepared scans go; '' = stores/<dataset>-<options> beside the workdir
  data.size = (
    224,
    224,
  )  # working grid: (h, w) slices, (d, h, w) volumes, () volumes of whatever size the spacing gives
  data.spacing_mm = (1.0, 1.0)  # (y, x) or (z, y, x) spacing before `fit`; () = the scan's own
  data.fit = 'resize'  # to `size`: resize | crop_pad
  data.interpolation = 'cubic'  # of the image: cubic | linear
  data.window = ''  # paper [50, 350] HU | transunet [-125, 275] HU | percentile | LOW,HIGH; '' = the data set's own
  data.fractions = ()  # shares of (train, val, test) where no split is published or given; () = the data set's own
  data.num_cases = 0  # drawn from the set with split_seed; 0 = all
  data.split_seed = 0
  data.keep_defective = False  # cases with known defects

  config.model = model = ml_collections.ConfigDict()
  model.name = 'unet'  # unet unetpp transunet vatransunet (2D), unet3d unetr unetrpp (3D)
  model.size = 'full'  # full | testing: small and quick, to try things out
  model.dtype = 'float32'  # compute dtype: float32 | bfloat16
  model.remat = False  # compute activations again in the backward pass: less memory, more time
  model.pretrained = ''  # file of published weights for the encoder of transunet or vatransunet
  model.unet = ml_collections.ConfigDict(dict(recipe='paper', head_kernel=1, features=()))  # () = 32 64 128 256 512
  model.unetpp = ml_collections.ConfigDict(dict(deep_supervision=False, features=(), repeat_to_rgb=False))
  model.transunet = ml_collections.ConfigDict(
    dict(
      encoder='r50',  # r50 | vit
      n_skip=config_dict.placeholder(int),  # skip connections, 0 to 3; unset = 3 with r50, 0 with vit
      position_grid=config_dict.placeholder(tuple),  # (h, w) tokens of converted weights, where that cannot be told
      reading='transunet',  # of the published weights: transunet (its figures) | google (their makers')
      dropout_rate=0.1,
    )
  )
  model.vatransunet = ml_collections.ConfigDict(dict(drop_path_rate=0.1))
  model.unet3d = ml_collections.ConfigDict(dict(deep_supervision=True, features=()))  # () = 32 64 128 256 320 320
  model.unetr = ml_collections.ConfigDict(
    dict(
      patch_embedding='perceptron',  # perceptron | conv
      position_grid=config_dict.placeholder(tuple),  # (d, h, w) patches of converted weights, where that cannot be told
      feature_size=config_dict.placeholder(int),  # channels at full resolution; unset = 16
      conv_block=True,
      res_block=True,
      qkv_bias=False,
      dropout_rate=0.0,
    )
  )
  model.unetrpp = ml_collections.ConfigDict(
    dict(
      epa_layout='released',  # released: with the scrambled axes of the published code | fixed
      stem=(2, 4, 4),
      deep_supervision=True,
      attention_dropout=0.15,
      channel_dropout=0.1,
    )
  )

  config.loss = loss = ml_collections.ConfigDict()
  loss.name = 'ce_afw'  # ce_afw ce_dice ce_gd focal_dice and the others of afw_jax.losses.LOSSES
  loss.ce_afw = ml_collections.ConfigDict(
    dict(
      recipe='paper',  # Eq. 7, linear denominators | released: 0.5 / 0.5, squared
      gamma=0.25,  # exponent of the focused organs
      rare=(),  # names of the focused organs; () = every organ
      correction='eq6',  # eq6 | eq2
      symmetric=False,  # the same exponent for the background (Table 4)
      learned_weights=True,
    )
  )  # False: equal weights (Table 3)
  loss.ce_dice = ml_collections.ConfigDict(dict(recipe='paper'))  # paper 1 / 1 linear | released 0.5 / 0.5 squared
  loss.ce_gd = ml_collections.ConfigDict(dict(ce_weight=1.0, gd_weight=1.0))
  loss.focal_dice = ml_collections.ConfigDict(dict(focal_weight=1.0, dice_weight=1.0, gamma=2.0))
  loss.tversky = ml_collections.ConfigDict(dict(fp_weight=0.3, fn_weight=0.7))
  loss.focal_tversky = ml_collections.ConfigDict(dict(fp_weight=0.3, fn_weight=0.7, gamma=4 / 3))
  loss.unified_focal = ml_collections.ConfigDict(dict(lam=0.5, delta=0.6, gamma=0.5))

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.learning_rate = 0.01
  optimizer.momentum = 0.9
  optimizer.weight_decay = 0.0  # released code: 1e-4
  optimizer.schedule_unit = 'epoch'  # released code: step
  optimizer.power = 0.9
  optimizer.clip_norm = 0.0  # 0 = no clipping

  config.augment = augment = ml_collections.ConfigDict()
  augment.name = 'paper'  # none paper released extended, volume (3D)
  augment.extended = ml_collections.ConfigDict(
    dict(
      max_angle_deg=20.0,
      scale=(0.85, 1.15),
      max_shift=0.05,
      gamma=(0.75, 1.33),
      contrast=(0.85, 1.15),
      brightness=0.08,
      mirror_axes=(),
    )
  )
  augment.volume = ml_collections.ConfigDict(
    dict(
      mirror_axes=(0, 1, 2),
      max_angle_deg=(30.0, 15.0, 15.0),
      scale=(0.85, 1.15),
      voxel_aspect=(1.0, 1.0, 1.0),  # lengths of a voxel (z, y, x), so that a rotation does not shear
      gamma=(1.0, 1.0),
      contrast=(1.0, 1.0),
      brightness=0.0,
    )
  )
  augment.released = ml_collections.ConfigDict(dict(p_flip=0.5, p_rotate=0.5))
  augment.paper = ml_collections.ConfigDict(dict(mirror_axes=(0, 1), max_angle_deg=30.0))

  config.train = train = ml_collections.ConfigDict()
  train.batch_size = 24
  train.micro_batches = 1  # parts that a batch goes through the network in, one after the other: less memory, more time
  train.epochs = 150
  train.steps_per_epoch = 0  # 0 = once over the data
  train.patch_size = ()  # (d, h, w) crops to train a 3D network on; () = whole slices or volumes
  train.foreground = 1 / 3  # share of the crops that hold an organ for sure
  train.crops_per_case = 1  # crops of a case in one epoch
  train.log_every_steps = 10
  train.checkpoint_every_steps = 200
  train.validate_every_epochs = 10

  config.eval = evaluation = ml_collections.ConfigDict()  # may differ between runs in one workdir
  evaluation.split = 'test'  # test | val | train; where a set has no test part, val is used and named
  evaluation.checkpoint = 'best'  # by validation DSC | last
  evaluation.convention = 'strict'  # strict | transunet | monai
  evaluation.nsd_tolerance_mm = 2.0
  evaluation.mirror_axes = ()  # axes to average over at test time
  evaluation.overlap = 0.5  # of neighbouring windows, as a share of their side (3D)
  evaluation.largest_component = False
  evaluation.batch_size = 8  # slices or windows at once, divided over the devices
  evaluation.num_pictures = 4  # cases drawn as overlays

  config.mesh = mesh = ml_collections.ConfigDict()  # devices = data x spatial; changes a result by rounding only
  mesh.data = -1  # parts of the batch; -1 = all devices there are
  mesh.spatial = 1  # parts of one sample, along its first axis: volumes too large for one device

  config.runtime = runtime = ml_collections.ConfigDict()  # never changes a result
  runtime.workers = 0  # processes that prepare; 0 = one per core
  runtime.deterministic = False  # GPU: the same bits each time, slower (CPUs and TPUs repeat themselves anyway)
  runtime.prefetch = 2  # batches read ahead
  runtime.compilation_cache = '~/.cache/afw_jax/xla'  # '' = none
  return config
