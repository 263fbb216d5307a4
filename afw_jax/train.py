"""The training loop: train(config, workdir), readable top to bottom."""

import contextlib
import functools
import json
import logging
import os
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from afw_jax import preprocess
from afw_jax.config import build
from afw_jax.data import pipeline, store
from afw_jax.data.selection import data_record, record_differences
from afw_jax.distributed import runtime, sharding, signals
from afw_jax.errors import InputError
from afw_jax.inference import validation
from afw_jax.training import checkpoint, metric_writer, progress, step
from afw_jax.weights import pretrained

_log = logging.getLogger('afw_jax')


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
  folder = os.path.join(workdir, 'checkpoints')
  last, best = os.path.join(folder, 'last'), os.path.join(folder, 'best')
  recorded = checkpoint.read_meta(last)
  selection = build.selection(config, index, recorded)
  data = data_record(index, selection)
  _check_same_data(last, recorded, data)
  class_names = ('background', *index['organs'])
  size = build.input_size(config)
  source = pipeline.make_source(
    store_dir,
    selection.splits['train'],
    selection.windows,
    patch_size=tuple(config.train.patch_size) or None,
    foreground=config.train.foreground,
    crops_per_case=config.train.crops_per_case,
  )
  batch_size = config.train.batch_size
  steps_per_epoch = config.train.steps_per_epoch or pipeline.steps_per_epoch(len(source), batch_size)
  total_steps = config.train.epochs * steps_per_epoch

  # -- model, loss, optimizer: the config ends here
  mesh = build.mesh(config)
  model, model_options = build.network(config, len(class_names), constrain=sharding.make_constrain(mesh))
  build.check_mesh(config, mesh, model)
  loss_fn = build.loss(config, model, class_names)
  schedule = build.schedule(config, steps_per_epoch)
  tx = build.sgd(config, schedule)

  # -- state, born on the mesh
  everywhere = sharding.replicated(mesh)
  image = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
  init = functools.partial(step.init_state, model, tx, num_classes=len(class_names))
  init_key, run_key = jax.random.split(jax.random.key(config.seed))
  abstract = jax.eval_shape(init, init_key, image=image)
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), abstract)

  # -- resume
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
    best_dsc, meta = None, {}
  start, due = int(state.step), meta.get('validation_due', False)
  if start >= total_steps and not due:
    _log.info('training is finished already (%d steps)', start)
    return
  meta = {
    'config': json.loads(config.to_json_best_effort()),
    'total_steps': total_steps,
    'model': {'name': config.model.name, 'num_classes': len(class_names), 'options': model_options, 'input_size': size},
    'data': data,
  }

  # -- steps
  train_step = jax.jit(
    step.make_train_step(model, loss_fn, tx, build.preparation(config, mesh), micro_batches=config.train.micro_batches),
    donate_argnums=0,
    out_shardings=(everywhere, everywhere),
  )
  own = runtime.local_mesh(mesh.shape['spatial'])  # cases are validated by one process each
  predict_step = sharding.jit_over_mesh(
    own, step.make_predict_step(model.clone(constrain=sharding.make_constrain(own)), preprocess.apply_window)
  )
  rank, world = sharding.data_shard(mesh)
  batches = pipeline.train_batches(
    source,
    batch_size=batch_size,
    seed=config.seed,
    start_step=start,
    rank=rank,
    world=world,
    prefetch=config.runtime.prefetch,
  )

  # -- the loop
  managers = {'last': checkpoint.open_manager(last, keep=2), 'best': checkpoint.open_manager(best, keep=1)}
  out = metric_writer.MetricWriter(workdir, start_step=start)
  bar = tqdm.tqdm(
    total=total_steps,
    initial=start,
    unit='step',
    desc='train',
    disable=runtime.process_index() > 0,
    mininterval=0.5 if sys.stderr.isatty() else 30,
  )
  clock = {'time': time.perf_counter(), 'step': start, 'wait': 0.0}
  pending = None

  def consume(done: int, aux: dict, picked: np.ndarray, wait: float) -> None:
    """Takes the figures of a step that the device has finished (one step late, so that none waits for them)."""
    aux = jax.device_get(aux)
    if not (np.isfinite(aux['loss']) and np.isfinite(aux['grad_norm'])):
      raise FloatingPointError(progress.non_finite(done, aux, [str(source.records[i][0]) for i in picked], class_names))
    bar.update(1)
    clock['wait'] += wait
    if done % config.train.log_every_steps and done != total_steps:
      return
    now, steps = time.perf_counter(), done - clock['step']
    speed, waited = steps * batch_size / max(now - clock['time'], 1e-9), clock['wait'] / max(steps, 1)
    clock.update(time=now, step=done, wait=0.0)
    scalars = progress.scalars(aux, class_names) | {
      'epoch': done / steps_per_epoch,
      'train/lr': float(schedule(done - 1)),
      'images_per_s': speed,
      'data_wait_s': waited,
    }
    out.write(done, scalars)
    bar.set_postfix_str(progress.postfix(scalars, aux['terms'], class_names, best_dsc))

  def validate(done: int) -> None:
    """Scores the state, and keeps it where it is the best so far."""
    nonlocal best_dsc
    scores = validation.validate(
      predict_step,
      runtime.local_copy(step.variables_of(state), own),
      store_dir,
      index,
      selection,
      window_size=size,
      batch_size=config.eval.batch_size,
      overlap=config.eval.overlap,
    )
    out.write(done, scores)
    if runtime.process_index() == 0:
      bar.write(f'step {done}: validation DSC {scores["val/dsc"]:.4f}')
    if best_dsc is None or scores['val/dsc'] > best_dsc:
      best_dsc = scores['val/dsc']
      checkpoint.save(managers['best'], state, {**meta, 'best_dsc': best_dsc})
      checkpoint.finish(managers['best'])  # before `last` says that it is there
    clock.update(time=time.perf_counter(), step=done, wait=0.0)  # validation is not counted as training time

  with signals.graceful_shutdown() as asked, contextlib.closing(out), contextlib.closing(bar):
    if due:
      validate(start)
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
      exit_code = asked(done)
      if not (validate_now or exit_code or done % config.train.checkpoint_every_steps == 0):
        continue

      consume(*pending)  # a checkpoint never holds what a non-finite step made
      pending = None
      due = validate_now and bool(selection.splits['val'])
      if due and not exit_code:
        validate(done)
        due = False
      checkpoint.save(managers['last'], state, {**meta, 'best_dsc': best_dsc, 'validation_due': due})
      if exit_code:
        for manager in managers.values():
          checkpoint.finish(manager)
        _log.warning('interrupted: saved at step %d of %d; the same command goes on from here', done, total_steps)
        raise SystemExit(exit_code)
    for manager in managers.values():
      checkpoint.finish(manager)
      manager.close()
    if exit_code := asked(total_steps + 1):  # during the last validation
      _log.warning('interrupted: training is finished and saved; the same command goes on from here')
      raise SystemExit(exit_code)


def _with_pretrained(
  state: step.TrainState, config: ml_collections.ConfigDict, options: dict, everywhere
) -> step.TrainState:
  """The fresh state with the published weights of config.model.pretrained where they belong."""
  variables = pretrained.load(
    config.model.name,
    config.model.pretrained,
    step.variables_of(state),
    image_shape=build.input_size(config),
    **options,
  )
  net, batch_stats = jax.device_put((variables['params'], variables.get('batch_stats', {})), everywhere)
  return state._replace(params={**state.params, 'net': net}, batch_stats=batch_stats)


def _check_same_data(folder: str, recorded: dict | None, data: dict) -> None:
  """Raises InputError if a checkpoint was trained on other data than the run has now."""
  recorded = recorded['data'] if recorded else data
  for key, (was, now) in record_differences(recorded, data, ('organs', 'options', 'splits')).items():
    raise InputError(
      folder,
      f'its checkpoints were trained with {key} {was}, the data now has {now}',
      'Choose another --workdir for the changed data.',
    )
