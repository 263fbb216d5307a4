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

from afw_jax import augment, checkpoint, inference, losses, metrics, models, optimizer, sharding, step, writer
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
  records = pipeline.records(store_dir, index['splits']['train'])
  batch_size = config.train.batch_size
  steps_per_epoch = config.train.steps_per_epoch or pipeline.steps_per_epoch(len(records), batch_size)
  total_steps = config.train.epochs * steps_per_epoch

  # -- model, loss, optimizer: the config ends here
  model, model_options = _network(config, len(class_names))
  loss_fn = losses.make_loss(config.loss.name, **_loss_options(config.loss.get(config.loss.name, {}), class_names))
  transform = _augmentation(config)
  schedule = _schedule(config, steps_per_epoch)
  tx = optimizer.sgd(schedule, momentum=config.optimizer.momentum, weight_decay=config.optimizer.weight_decay,
                     clip_norm=config.optimizer.clip_norm)

  # -- state, born on the mesh
  mesh = sharding.make_mesh()
  sharding.check_batch(batch_size, mesh)
  everywhere, batched = sharding.replicated(mesh), sharding.over_batch(mesh)
  image = jax.ShapeDtypeStruct((1, *index['options']['size'], 1), jnp.float32)
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
    best_dsc = None
  start = int(state.step)
  if start >= total_steps:
    _log.info('training is finished already (%d steps)', start)
    return
  meta = {
      'config': json.loads(config.to_json_best_effort()), 'total_steps': total_steps,
      'model': {'name': config.model.name, 'num_classes': len(class_names), 'options': _plain(model_options)},
      'data': {k: index[k] for k in ('name', 'modality', 'organs', 'output_ids', 'window', 'options', 'splits')},
  }

  # -- steps
  def prepare_batch(key, batch):
    return transform(key, {'image': augment.apply_window(batch['image'], batch['window']), 'label': batch['label']})

  train_step = jax.jit(step.make_train_step(model, loss_fn, tx, prepare_batch), donate_argnums=0,
                       in_shardings=(everywhere, batched, everywhere), out_shardings=(everywhere, everywhere))
  predict_step = jax.jit(step.make_predict_step(model, augment.apply_window))
  batches = pipeline.train_batches(
      store_dir, index['splits']['train'], batch_size=batch_size, seed=config.seed, start_step=start,
      rank=jax.process_index(), world=jax.process_count(), prefetch=config.runtime.prefetch)

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
      raise FloatingPointError(_non_finite(done, aux, [records[i] for i in picked], class_names))
    bar.update(1)
    if done % config.train.log_every_steps and done != total_steps:
      return
    now = time.perf_counter()
    speed = (done - clock['step']) * batch_size / max(now - clock['time'], 1e-9)
    clock.update(time=now, step=done)
    scalars = _scalars(aux, class_names) | {
        'epoch': done / steps_per_epoch, 'train/lr': float(schedule(done - 1)), 'images_per_s': speed, 'data_wait_s': wait}
    out.write(done, scalars)
    bar.set_postfix_str(_postfix(scalars, aux['terms'], class_names, best_dsc))

  with _signals() as received, contextlib.closing(out), contextlib.closing(bar):
    for done in range(start + 1, total_steps + 1):
      before = time.perf_counter()
      batch = next(batches)
      wait = time.perf_counter() - before
      picked = batch.pop('index')
      state, aux = train_step(state, sharding.put_batch(batch, batched), run_key)
      if pending:
        consume(*pending)
      pending = (done, aux, picked, wait)
      validate_now = done == total_steps or done % (config.train.validate_every_epochs * steps_per_epoch) == 0
      if not (validate_now or received or done % config.train.checkpoint_every_steps == 0):
        continue

      consume(*pending)  # a checkpoint never holds what a non-finite step made
      pending = None
      if validate_now and index['splits']['val']:
        scores = validate(predict_step, step.variables_of(state), store_dir, index, config.eval.batch_size)
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


def check_options(config: ml_collections.ConfigDict) -> None:
  """Raises InputError for what the config asks of network, loss, augmentation or schedule and cannot have; takes no time."""
  for section, key in (('train', 'batch_size'), ('train', 'epochs'), ('train', 'log_every_steps'), ('eval', 'batch_size'),
                       ('train', 'checkpoint_every_steps'), ('train', 'validate_every_epochs')):
    if config[section][key] < 1:
      raise InputError(f'{section}.{key}', f'is {config[section][key]}', 'Give 1 or more.')
  for key, known in (('convention', metrics.UNITS), ('split', ('train', 'val', 'test')), ('checkpoint', ('best', 'last'))):
    if config.eval[key] not in known:
      raise InputError(f'eval.{key}', f'{config.eval[key]!r} is unknown', f'Use one of {", ".join(known)}.')
  _augmentation(config)
  _schedule(config, 1)
  options = dict(config.loss.get(config.loss.name, {}))
  options.pop('rare', None)  # organ names: checked when the data are known
  losses.make_loss(config.loss.name, **options)
  sharding.check_batch(config.train.batch_size, sharding.make_mesh())
  model, _ = _network(config, 2)
  image = jax.ShapeDtypeStruct((1, *config.data.size, 1), jnp.float32)
  jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def _network(config: ml_collections.ConfigDict, num_classes: int):
  options = {'dtype': config.model.dtype, **config.model.get(config.model.name, {})}
  return models.build(config.model.name, num_classes=num_classes, **options), options


def _augmentation(config: ml_collections.ConfigDict):
  return augment.make_augment(config.augment.name, **config.augment.get(config.augment.name, {}))


def _schedule(config: ml_collections.ConfigDict, steps_per_epoch: int):
  return optimizer.polynomial_schedule(
      config.optimizer.learning_rate, epochs=config.train.epochs, steps_per_epoch=steps_per_epoch,
      unit=config.optimizer.schedule_unit, power=config.optimizer.power)


def validate(predict_step, variables, store_dir: str, index: dict, batch_size: int) -> dict[str, float]:
  """DSC of every validation case as a volume on its own grid, averaged over cases for each organ.

  Returns:
    {'val/dsc': mean over organs, 'val/dsc/<organ>': ...}; organs in no case are left out.
  """
  scores = []
  for case_id in tqdm.tqdm(index['splits']['val'], desc='validate', leave=False, disable=not sys.stderr.isatty()):
    case = store.read_case(store_dir, case_id)
    labels, _ = inference.segment(predict_step, variables, case.arrays['image'], case.meta['window'],
                                  resample.restore_matrices(resample.Plan.from_json(case.meta['plan'])), batch_size=batch_size)
    scores.append(metrics.dice_per_class(labels, case.arrays['native_label'], len(index['organs']) + 1)[1:])
  scores = np.array(scores)
  seen = ~np.isnan(scores).all(0)
  mean = {organ: float(np.nanmean(scores[:, i])) for i, organ in enumerate(index['organs']) if seen[i]}
  return {'val/dsc': float(np.mean(list(mean.values()))), **{f'val/dsc/{k}': v for k, v in mean.items()}}


def _scalars(aux: dict, class_names: tuple[str, ...]) -> dict[str, float]:
  """What metrics.jsonl keeps of a step."""
  terms = aux['terms']
  scalars = {'train/loss': float(aux['loss']), 'train/grad_norm': float(aux['grad_norm']),
             'train/dsc': 1 - float(np.mean(terms['dice'][1:]))}
  for name, key in (('train/dice', 'dice'), ('weight', 'weight'), ('train/contribution', 'contribution')):
    scalars |= {f'{name}/{c}': float(v) for c, v in zip(class_names, terms.get(key, ()))}
  return scalars


def _postfix(scalars: dict, terms: dict, class_names: tuple[str, ...], best_dsc: float | None) -> str:
  text = f'loss {scalars["train/loss"]:.3f}, batch DSC {scalars["train/dsc"]:.3f}'
  text += f', best val {best_dsc:.3f}' if best_dsc is not None else ''
  if 'weight' in terms:
    low, high = int(np.argmin(terms['weight'])), int(np.argmax(terms['weight']))
    text += f', weights {terms["weight"][low]:.2f} ({class_names[low]}) to {terms["weight"][high]:.2f} ({class_names[high]})'
  return text + f', {scalars["images_per_s"]:.1f} img/s'


def _non_finite(done: int, aux: dict, picked: list, class_names: tuple[str, ...]) -> str:
  terms = '; '.join(f'{k}: ' + ', '.join(f'{c} {v:.4g}' for c, v in zip(class_names, values)) for k, values in aux['terms'].items())
  cases = ', '.join(sorted({str(record[0]) for record in picked}))
  return (f'step {done}: loss {aux["loss"]:.4g}, gradient norm {aux["grad_norm"]:.4g}. Cases in the batch: {cases}. '
          f'Class terms: {terms}. Nothing of this step was saved; lower optimizer.learning_rate or set optimizer.clip_norm.')


def _loss_options(options: dict, class_names: tuple[str, ...]) -> dict:
  """The focused organs by name -> by class id; none named means every organ."""
  options = dict(options)
  unknown = [name for name in options.get('rare', ()) if name not in class_names]
  if unknown:
    raise InputError('loss.rare', f'{unknown} are not among the organs', f'Name some of {class_names[1:]}.')
  if 'rare' in options:
    options['rare'] = tuple(class_names.index(name) for name in options['rare']) or None
  return options


def _check_same_data(folder: str, index: dict) -> None:
  """The config of a workdir is fixed, but the data behind it can change: a checkpoint goes on with its own only."""
  meta = checkpoint.read_meta(folder)
  for key in ('organs', 'options', 'splits'):
    if meta and meta['data'][key] != index[key]:
      raise InputError(folder, f'its checkpoints were trained with {key} {meta["data"][key]}, the data now has {index[key]}',
                       'Choose another --workdir for the changed data.')


def _plain(options: dict) -> dict:
  return json.loads(ml_collections.ConfigDict(options).to_json_best_effort())


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
