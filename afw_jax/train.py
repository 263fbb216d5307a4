"""The training loop: train(config, workdir), readable top to bottom."""

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from afw_jax import assembly, augment, checkpoint, inference, metrics, pretrained, progress, sharding, step, writer
from afw_jax.data import pipeline, resample, store
from afw_jax.errors import InputError

_log = logging.getLogger('afw_jax')

EXIT_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def train(config: ml_collections.ConfigDict, workdir: str, store_dir: str) -> None:
  """Trains until the configured number of epochs; goes on from the last checkpoint where there is one.

  Args:
    config: as configs/common.py describes it.
    workdir: where checkpoints, metrics.jsonl and TensorBoard events go.
    store_dir: the prepared data.

  Raises:
    FloatingPointError: a loss or gradient is not finite; names step, cases and class terms.
    SystemExit: interrupted by Ctrl-C (130) or SIGTERM (143), after saving.
  """
  # -- data
  index = store.read_index(store_dir)
  class_names = ('background', *index['organs'])
  size = assembly.input_size(config)
  source = pipeline.make_source(
      store_dir, index['splits']['train'], patch_size=tuple(config.train.patch_size) or None,
      foreground=config.train.foreground, crops_per_case=config.train.crops_per_case)
  batch_size = config.train.batch_size
  steps_per_epoch = config.train.steps_per_epoch or pipeline.steps_per_epoch(len(source), batch_size)
  total_steps = config.train.epochs * steps_per_epoch

  # -- model, loss, optimizer: the config ends here
  mesh = assembly.mesh(config)
  sharding.check(mesh, batch_size, size)
  model, model_options = assembly.network(config, len(class_names), constrain=sharding.make_constrain(mesh))
  loss_fn = assembly.loss(config, model, class_names)
  transform = assembly.augmentation(config)
  schedule = assembly.schedule(config, steps_per_epoch)
  tx = assembly.sgd(config, schedule)

  # -- state, born on the mesh
  everywhere = sharding.replicated(mesh)
  image = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
  init = functools.partial(step.init_state, model, tx, num_classes=len(class_names))
  init_key, run_key = jax.random.split(jax.random.key(config.seed))
  abstract = jax.eval_shape(init, init_key, image=image)
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), abstract)

  # -- resume
  folder = os.path.join(workdir, 'checkpoints')
  last, best = os.path.join(folder, 'last'), os.path.join(folder, 'best')
  _check_same_data(last, index)
  restored = checkpoint.restore_state(last, abstract)
  if restored:
    state, meta = restored
    best_dsc = meta['best_dsc']
    _log.info('resumed from step %d of %d', int(state.step), total_steps)
  else:
    # Runs once: optimising its compilation would only delay the first step (and changes no bit).
    born = jax.jit(init, out_shardings=everywhere, compiler_options={'xla_backend_optimization_level': 0})
    state = born(init_key, image=jnp.zeros(image.shape, image.dtype))
    if config.model.pretrained:
      state = _with_pretrained(state, config, model_options, everywhere)
    best_dsc = None
  start = int(state.step)
  if start >= total_steps:
    _log.info('training is finished already (%d steps)', start)
    return
  meta = {
      'config': json.loads(config.to_json_best_effort()), 'total_steps': total_steps,
      'model': {'name': config.model.name, 'num_classes': len(class_names), 'options': model_options, 'input_size': size},
      'data': {k: index[k] for k in ('name', 'modality', 'organs', 'output_ids', 'window', 'options', 'splits')},
  }

  # -- steps
  def prepare_batch(key, batch):
    return transform(key, {'image': augment.apply_window(batch['image'], batch['window']), 'label': batch['label']})

  train_step = jax.jit(step.make_train_step(model, loss_fn, tx, prepare_batch), donate_argnums=0,
                       out_shardings=(everywhere, everywhere))
  predict_step = jax.jit(step.make_predict_step(model, augment.apply_window))
  rank, world = sharding.share(mesh)
  batches = pipeline.train_batches(
      source, batch_size=batch_size, seed=config.seed, start_step=start, rank=rank, world=world,
      prefetch=config.runtime.prefetch)

  # -- the loop
  managers = {'last': checkpoint.open_manager(last, keep=2), 'best': checkpoint.open_manager(best, keep=1)}
  out = writer.MetricWriter(workdir, start_step=start)
  bar = tqdm.tqdm(total=total_steps, initial=start, unit='step', desc='train', mininterval=0.5 if sys.stderr.isatty() else 30)
  clock = {'time': time.perf_counter(), 'step': start}
  pending = None

  def consume(done: int, aux: dict, picked: np.ndarray, wait: float) -> None:
    """Takes the figures of a step that the device has finished (one step late, so that none waits for them)."""
    aux = jax.device_get(aux)
    if not (np.isfinite(aux['loss']) and np.isfinite(aux['grad_norm'])):
      raise FloatingPointError(progress.non_finite(done, aux, [str(source.records[i][0]) for i in picked], class_names))
    bar.update(1)
    if done % config.train.log_every_steps and done != total_steps:
      return
    now = time.perf_counter()
    speed = (done - clock['step']) * batch_size / max(now - clock['time'], 1e-9)
    clock.update(time=now, step=done)
    scalars = progress.scalars(aux, class_names) | {
        'epoch': done / steps_per_epoch, 'train/lr': float(schedule(done - 1)), 'images_per_s': speed, 'data_wait_s': wait}
    out.write(done, scalars)
    bar.set_postfix_str(progress.postfix(scalars, aux['terms'], class_names, best_dsc))

  with _signals() as received, contextlib.closing(out), contextlib.closing(bar):
    for done in range(start + 1, total_steps + 1):
      before = time.perf_counter()
      batch = next(batches)
      wait = time.perf_counter() - before
      picked = batch.pop('index')
      state, aux = train_step(state, sharding.put_batch(batch, mesh), run_key)
      if pending:
        consume(*pending)
      pending = (done, aux, picked, wait)
      validate_now = done == total_steps or done % (config.train.validate_every_epochs * steps_per_epoch) == 0
      if not (validate_now or received or done % config.train.checkpoint_every_steps == 0):
        continue

      consume(*pending)  # a checkpoint never holds what a non-finite step made
      pending = None
      if validate_now and index['splits']['val']:
        scores = validate(predict_step, step.variables_of(state), store_dir, index, size, config.eval)
        out.write(done, scores)
        bar.write(f'step {done}: validation DSC {scores["val/dsc"]:.4f}')
        if best_dsc is None or scores['val/dsc'] > best_dsc:
          best_dsc = scores['val/dsc']
          checkpoint.save(managers['best'], state, {**meta, 'best_dsc': best_dsc})
          checkpoint.finish(managers['best'])  # before `last` says that it is there
        clock.update(time=time.perf_counter(), step=done)  # validation is not counted as training time
      checkpoint.save(managers['last'], state, {**meta, 'best_dsc': best_dsc})
      if received:
        for manager in managers.values():
          checkpoint.finish(manager)
        _log.warning('interrupted: saved at step %d of %d; the same command goes on from here', done, total_steps)
        raise SystemExit(EXIT_INTERRUPTED[received[0]])
    for manager in managers.values():
      checkpoint.finish(manager)
      manager.close()


def validate(predict_step, variables, store_dir: str, index: dict, size: tuple[int, ...], options: ml_collections.ConfigDict) -> dict[str, float]:
  """DSC of every validation case as a volume on its own grid, averaged over cases for each organ.

  Returns:
    {'val/dsc': mean over organs, 'val/dsc/<organ>': ...}; organs in no case are left out.
  """
  scores = []
  for case_id in tqdm.tqdm(index['splits']['val'], desc='validate', leave=False, disable=not sys.stderr.isatty()):
    case = store.read_case(store_dir, case_id)
    labels, _ = inference.segment(predict_step, variables, case.arrays['image'], case.meta['window'],
                                  resample.restore_matrices(resample.Plan.from_json(case.meta['plan'])), window_size=size,
                                  batch_size=options.batch_size, overlap=options.overlap)
    scores.append(metrics.dice_per_class(labels, case.arrays['native_label'], len(index['organs']) + 1)[1:])
  scores = np.array(scores)
  seen = ~np.isnan(scores).all(0)
  mean = {organ: float(np.nanmean(scores[:, i])) for i, organ in enumerate(index['organs']) if seen[i]}
  return {'val/dsc': float(np.mean(list(mean.values()))), **{f'val/dsc/{k}': v for k, v in mean.items()}}


def _with_pretrained(state: step.TrainState, config: ml_collections.ConfigDict, options: dict, everywhere) -> step.TrainState:
  """The fresh state with the published weights of config.model.pretrained where they belong."""
  variables = pretrained.load(config.model.name, config.model.pretrained, step.variables_of(state),
                               image_shape=assembly.input_size(config), **options)
  net, batch_stats = jax.device_put((variables['params'], variables.get('batch_stats', {})), everywhere)
  return state._replace(params={**state.params, 'net': net}, batch_stats=batch_stats)


def _check_same_data(folder: str, index: dict) -> None:
  """The config of a workdir is fixed, but the data behind it can change: a checkpoint goes on with its own only."""
  meta = checkpoint.read_meta(folder)
  for key in ('organs', 'options', 'splits'):
    if meta and meta['data'][key] not in (None, index[key]):  # None: converted weights, trained on nobody knows what
      raise InputError(folder, f'its checkpoints were trained with {key} {meta["data"][key]}, the data now has {index[key]}',
                       'Choose another --workdir for the changed data.')


@contextlib.contextmanager
def _signals():
  """Collects Ctrl-C and SIGTERM, so that the step under way ends and is saved; a second Ctrl-C stops at once."""
  received = []

  def handler(signum, _):
    if signum in received:
      raise KeyboardInterrupt
    received.append(signal.Signals(signum))

  old = {s: signal.signal(s, handler) for s in EXIT_INTERRUPTED}
  try:
    yield received
  finally:
    for s, h in old.items():
      signal.signal(s, h)
