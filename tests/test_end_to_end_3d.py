"""The 3D networks through the command line: from volumes and crops to label maps on the grids of the scans."""

import json
import os

import nibabel as nib
import numpy as np
import pytest
from marks import SLOW

from afw_jax import predict
from afw_jax.data.formats import volumes
from afw_jax.training import metric_writer

SMALL = (
  '--config.model.size=testing',
  '--config.train.batch_size=2',
  '--config.train.epochs=2',
  '--config.train.steps_per_epoch=3',
  '--config.train.checkpoint_every_steps=4',
  '--config.train.validate_every_epochs=1',
  '--config.train.log_every_steps=1',
  '--config.eval.batch_size=2',
  '--config.augment.name=volume',
  '--config.eval.num_pictures=1',
)
VOLUMES = (
  '--config.model.name=unetr',
  '--config.data.size=(16, 32, 32)',
  '--config.data.spacing_mm=()',
  '--config.data.fit=resize',
)
CROPS = (
  '--config.model.name=unet3d',
  '--config.data.size=()',
  '--config.data.spacing_mm=(20.0, 7.0, 7.0)',
  '--config.train.patch_size=(16, 32, 32)',
  '--config.eval.overlap=0.25',
)


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(VOLUMES, id='unetr-volumes', marks=SLOW),
    pytest.param(CROPS, id='unet3d-crops'),
    pytest.param((*CROPS, '--config.model.name=unetrpp'), id='unetrpp-crops', marks=SLOW),
  ],
)
def run(request, tmp_path_factory, phantoms, run_main):
  """(workdir, its arguments) of a finished run."""
  workdir = tmp_path_factory.mktemp('3d') / 'run'
  arguments = (
    '--config=configs/demo.py',
    f'--config.data.root={phantoms}',
    f'--workdir={workdir}',
    *SMALL,
    *request.param,
  )
  run_main(*arguments)
  return workdir, arguments


def test_it_leaves_what_a_2d_run_leaves(run, phantoms):
  workdir, _ = run
  records = metric_writer.read_metrics(str(workdir))
  assert [r['step'] for r in records if 'train/loss' in r] == [1, 2, 3, 4, 5, 6]
  assert all(np.isfinite(r['train/loss']) for r in records if 'train/loss' in r)
  assert [r['step'] for r in records if 'val/dsc' in r] == [3, 6]
  assert (workdir / 'report' / 'report.md').exists() and list((workdir / 'pictures').glob('*.png'))
  predictions = sorted((workdir / 'predictions').glob('*.nii.gz'))
  assert len(predictions) == 2
  for path in predictions:
    image, label = nib.load(phantoms / 'images' / path.name), nib.load(path)
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)


def test_predict_takes_a_new_scan_of_another_size(run, phantoms, run_main, tmp_path):
  workdir, _ = run
  source = nib.load(phantoms / 'imagesTs' / 'new_000.nii.gz')
  cut = nib.Nifti1Image(np.asarray(source.dataobj)[4:37, 3:, 1:], source.affine)
  nib.save(cut, tmp_path / 'cut.nii.gz')
  run_main(
    '--mode=predict',
    f'--workdir={workdir}',
    f'--input={tmp_path}/cut.nii.gz',
    f'--output={tmp_path}/label.nii.gz',
    '--mirror_axes=2',
  )
  label = nib.load(tmp_path / 'label.nii.gz')
  assert label.shape == cut.shape and np.array_equal(label.affine, cut.affine)
  trained = predict.load(str(workdir), mirror_axes=(2,))
  found, _ = predict.predict_volume(trained, volumes.read_image(tmp_path / 'cut.nii.gz'))
  np.testing.assert_array_equal(found, volumes.read_label(tmp_path / 'label.nii.gz').array)


def test_a_resumed_run_is_the_uninterrupted_one(run, run_main, tmp_path):
  workdir, arguments = run
  other = workdir.parent / 'again'  # the same store
  arguments = [a if not a.startswith('--workdir') else f'--workdir={other}' for a in arguments]
  run_main(*arguments, '--mode=train')
  os.rename(other / 'checkpoints' / 'last' / '6', tmp_path / 'gone')  # back to step 4, in the middle of an epoch
  run_main(*arguments, '--mode=train')

  def fingerprint(folder):
    return json.loads((folder / 'checkpoints' / 'last' / '6' / 'meta' / 'metadata').read_text(encoding='utf-8'))[
      'fingerprint'
    ]

  assert fingerprint(other) == fingerprint(workdir)


def test_2d_networks_refuse_volumes_and_3d_networks_slices(run_main, phantoms, tmp_path):
  base = ('--config=configs/demo.py', f'--config.data.root={phantoms}', f'--workdir={tmp_path}/run')
  for arguments, said in (
    ((*SMALL, '--config.model.name=unetr'), 'unetr is a 3D network'),
    (('--config.data.size=(16, 32, 32)',), 'unet is a 2D network'),
    ((*SMALL, *CROPS, '--config.data.size=(32, 32)'), 'makes slices'),
  ):
    done = run_main(*base, *arguments, check=2)
    assert said in done.stderr and not (tmp_path / 'run' / 'checkpoints').exists()
