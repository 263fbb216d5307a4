"""The default config: every key, with the paper's training (section 3.1) as values.

A run of an earlier version goes on with the defaults of the keys that it did not have, so a new key has a default that
changes nothing.
"""

import ml_collections
from ml_collections import ConfigDict, config_dict


def default_config() -> ml_collections.ConfigDict:
  """All keys with their defaults; each can be changed on the command line: --config.train.epochs=10."""
  return ConfigDict(
    dict(
      seed=0,  # of the initialisation, the order of the batches, augmentation and dropout
      data=_data(),
      model=_model(),
      loss=_loss(),
      optimizer=_optimizer(),
      augment=_augment(),
      train=_train(),
      eval=_eval(),
      mesh=_mesh(),
      runtime=_runtime(),
      tracker='',  # experiment tracker that gets the records of metrics.jsonl, too: wandb | mlflow; '' = none
    )
  )


def _data() -> ConfigDict:
  data = ConfigDict()
  # synapse chaos_ct chaos_mr_t1in chaos_mr_t1out chaos_mr_t2 chaos4 abdomenct1k totalsegmentator amos amos_mr flare22
  data.dataset = 'synapse'  # one of these, or folder: your own, described by dataset.json
  data.root = 'data/synapse'  # folder of the raw scans
  data.store = ''  # folder of the prepared scans; '' = stores/<dataset>-<digest of the options> beside the workdir
  data.organs = ''  # totalsegmentator: names of the masks with commas, in the order of the classes; '' = abdominal ones
  data.overlap = 'error'  # totalsegmentator: voxels in several masks: error | first | last (organ that gets them)
  # Voxels of the working grid: (h, w) for slices, (d, h, w) for volumes, () for volumes as the spacing gives them.
  data.size = (224, 224)
  data.spacing_mm = (1.0, 1.0)  # (y, x) or (z, y, x) spacing before `fit`; () = the spacing of each scan
  data.fit = 'resize'  # from the spacing to the size: resize | crop_pad
  data.interpolation = 'cubic'  # of the image: cubic | linear
  data.window = ''  # paper [50, 350] HU | transunet [-125, 275] HU | percentile | LOW,HIGH; '' = that of the data set
  data.fractions = ()  # of (train, val, test) where no split is published or given; () = those of the data set
  data.num_cases = 0  # number of cases drawn with split_seed; 0 = all
  data.fold = ''  # K/N: hold out the K-th of N folds as val and train on the others; '' = no cross-validation
  data.split_seed = 0  # of the split, the folds and the draw
  data.keep_defective = False  # whether to use cases with known defects
  return data


def _model() -> ConfigDict:
  model = ConfigDict()
  model.name = 'unet'  # 2D: unet unetpp transunet vatransunet; 3D: unet3d unetr unetrpp
  model.size = 'full'  # full | testing: a small network, to try things out
  model.dtype = 'float32'  # compute dtype: float32 | bfloat16
  model.remat = False  # rematerialisation: recompute activations in the backward pass; less memory, more time
  model.pretrained = ''  # file of published encoder weights (transunet, vatransunet)
  # Workdir of a run of the same network whose best checkpoint the training starts from, or a model file; the output is
  # new where the organs differ.
  model.init_from = ''
  model.unet = dict(
    recipe='paper',  # paper | released: the slice repeated to three channels
    head_kernel=1,
    features=(),  # channels per level; () = 32 64 128 256 512
  )
  model.unetpp = dict(deep_supervision=False, features=(), repeat_to_rgb=False)
  model.transunet = dict(
    encoder='r50',  # r50 | vit
    n_skip=config_dict.placeholder(int),  # skip connections, 0 to 3; unset = 3 with r50, 0 with vit
    position_grid=config_dict.placeholder(tuple),  # (h, w) tokens of imported weights, where it cannot be inferred
    reading='transunet',  # variant of the encoder: transunet (as TransUNet computes it) | google (as it was trained)
    dropout_rate=0.1,
  )
  model.vatransunet = dict(drop_path_rate=0.1)
  model.unet3d = dict(deep_supervision=True, features=())  # () = 32 64 128 256 320 320
  model.unetr = dict(
    patch_embedding='perceptron',  # perceptron | conv
    position_grid=config_dict.placeholder(tuple),  # (d, h, w) patches of imported weights, where it cannot be inferred
    feature_size=config_dict.placeholder(int),  # channels at full resolution; unset = 16
    conv_block=True,
    res_block=True,
    qkv_bias=False,
    dropout_rate=0.0,
  )
  model.unetrpp = dict(
    epa_layout='released',  # released: with the transposed axes of the published code | fixed
    stem=(2, 4, 4),
    deep_supervision=True,
    attention_dropout=0.15,
    channel_dropout=0.1,
  )
  return model


def _loss() -> ConfigDict:
  loss = ConfigDict()
  loss.name = 'ce_afw'  # ce_afw ce_dice ce_gd focal_dice, and the others of afw_jax.losses.LOSSES
  loss.ce_afw = dict(
    recipe='paper',  # paper: Eq. 7, linear denominators | released: 0.5 CE + 0.5 AFW, squared denominators
    gamma=0.25,  # exponent of the focused organs; above 1 the worst are pulled most
    rare=(),  # names of the focused organs; () = every organ
    correction='eq6',  # eq6 | eq2
    symmetric=False,  # True: the same exponent for the background (Table 4)
    weights='learned',  # learned | equal (Table 3) | solved (at their optimum) | entropic | entropic_present
    learned_weights=True,  # False: the same as weights='equal'
    background='weighted',  # weighted | anchored: the background weighs 1, only organs are weighted
    tau=0.25,  # temperature of the entropic weights; smaller: more weight on the worst classes
  )
  loss.ce_dice = dict(
    recipe='paper',  # paper: 1 CE + 1 Dice, linear | released: 0.5 and 0.5, squared
    reduction='mean',  # of the Dice losses of the classes: mean | sum
  )
  loss.ce_gd = dict(ce_weight=1.0, gd_weight=1.0)
  loss.focal_dice = dict(focal_weight=1.0, dice_weight=1.0, gamma=2.0)
  loss.tversky = dict(fp_weight=0.3, fn_weight=0.7)
  loss.focal_tversky = dict(fp_weight=0.3, fn_weight=0.7, gamma=4 / 3)
  loss.unified_focal = dict(lam=0.5, delta=0.6, gamma=0.5)
  return loss


def _optimizer() -> ConfigDict:
  optimizer = ConfigDict()
  optimizer.learning_rate = 0.01
  optimizer.momentum = 0.9
  optimizer.weight_decay = 0.0  # released code: 1e-4
  optimizer.schedule_unit = 'epoch'  # epoch | step (released code)
  optimizer.power = 0.9
  optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0 = no clipping
  optimizer.head_learning_rate_factor = 1.0  # of the learning rate, for the output heads; 0 = they are not trained
  optimizer.body_learning_rate_factor = 1.0  # likewise, for all other layers of the network
  return optimizer


def _augment() -> ConfigDict:
  augment = ConfigDict()
  augment.name = 'paper'  # none | paper | released | extended | volume (3D)
  augment.extended = dict(
    max_angle_deg=20.0,
    scale=(0.85, 1.15),
    max_shift=0.05,
    gamma=(0.75, 1.33),
    contrast=(0.85, 1.15),
    brightness=0.08,
    mirror_axes=(),
  )
  augment.volume = dict(
    mirror_axes=(0, 1, 2),
    max_angle_deg=(30.0, 15.0, 15.0),
    scale=(0.85, 1.15),
    voxel_aspect=(1.0, 1.0, 1.0),  # side lengths of a voxel (z, y, x), so that a rotation does not shear the body
    gamma=(1.0, 1.0),
    contrast=(1.0, 1.0),
    brightness=0.0,
  )
  augment.released = dict(p_flip=0.5, p_rotate=0.5)
  augment.paper = dict(mirror_axes=(0, 1), max_angle_deg=30.0)
  return augment


def _train() -> ConfigDict:
  train = ConfigDict()
  train.batch_size = 24  # of the global batch, over all devices
  train.micro_batches = 1  # gradient accumulation: parts that a batch passes through the network one after the other
  train.epochs = 150
  train.steps_per_epoch = 0  # 0 = once over the data
  train.patch_size = ()  # (d, h, w) crops to train a 3D network on; () = whole slices or volumes
  train.foreground = 1 / 3  # fraction of the crops that are sure to contain an organ
  train.crops_per_case = 1  # crops of a case in one epoch
  train.log_every_steps = 10
  train.checkpoint_every_steps = 200
  train.validate_every_epochs = 10
  return train


def _eval() -> ConfigDict:
  evaluation = ConfigDict()  # may differ between starts in one workdir
  evaluation.split = 'test'  # test | val | train; where a data set has no test cases, val is scored, with a warning
  evaluation.checkpoint = 'best'  # best (by validation DSC) | last
  evaluation.convention = 'strict'  # strict | transunet | unetrpp | monai
  evaluation.nsd_tolerance_mm = 2.0
  evaluation.mirror_axes = ()  # spatial axes of test-time mirroring
  evaluation.overlap = 0.5  # of neighbouring patches, as a fraction of their size
  evaluation.largest_component = False  # keep the largest connected component of each organ only
  evaluation.batch_size = 8  # slices or patches at once, divided over the devices
  evaluation.num_pictures = 4  # cases drawn as overlays
  return evaluation


def _mesh() -> ConfigDict:
  mesh = ConfigDict()  # devices = data x spatial; changes results by rounding only
  mesh.data = -1  # number of parts of the batch; -1 = as many as there are devices for
  mesh.spatial = 1  # number of parts of each sample along its first axis: for volumes too large for one device
  return mesh


def _runtime() -> ConfigDict:
  runtime = ConfigDict()  # may differ between starts in one workdir; changes results by rounding at most
  runtime.workers = 0  # processes that prepare scans; 0 = as many as CPUs and memory allow
  runtime.platform = ''  # cpu | gpu | tpu: refuse to run on anything else; '' = whatever JAX finds
  runtime.deterministic = False  # GPU: bit-identical repetitions, slower (CPUs and TPUs are deterministic anyway)
  # Products of float32 numbers in networks: default | high | highest. default: factors in bfloat16 on TPUs, in TF32 on
  # NVIDIA GPUs; high: in three bfloat16 parts, in TF32; highest: float32. CPUs always compute in float32.
  runtime.matmul_precision = 'default'
  runtime.prefetch = 2  # batches read ahead
  runtime.compilation_cache = '~/.cache/afw_jax/xla'  # folder of compiled programs; '' = none
  return runtime
