"""What a user can do wrong on the command line: one clear line, exit code 2, nothing half written."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from marks import SLOW


def one_line(done, quiet=True):
  """The error line; there is no traceback."""
  assert done.returncode == 2, done.stderr[-2000:]
  assert not quiet or 'Traceback' not in done.stderr
  lines = [line for line in done.stderr.splitlines() if line.startswith('error:')]
  assert len(lines) == 1, done.stderr
  return lines[0]


@pytest.mark.parametrize(
  'arguments, said',
  [
    (('--mode=report',), '--workdir'),
    (('--mode=train', '--workdir=x'), '--config'),
    (('--config=configs/none.py',), 'configs/none.py'),
    (('--config=configs/demo.py', '--config.train.epoch=3'), 'epochs'),
    (('--config=configs/demo.py', '--config.train.epochs=many'), 'epochs'),
    (('--mode=predicts',), 'predict'),
    (('--mode=predict', '--workdir=nowhere/run', '--input=a.nii.gz', '--output=b.nii.gz'), 'a.nii.gz'),
    (('--config=configs/synapse.py', '--config.data.root=nowhere', '--workdir=WORK/a'), 'syn3193805'),
    (('--config=configs/demo.py', '--config.data.window=1,b', '--workdir=WORK/b'), 'data.window'),
    (('stray', '--workdir=x'), 'stray'),
    (('--mode=evaluate', '--workdir=x,y'), '--output'),
    (('--mode=evaluate', '--config=configs/demo.py', '--workdir=x', '--output=y'), '--output'),
    (('--mode=predict', '--workdir=x,,y', '--input=a.nii.gz', '--output=b.nii.gz'), 'empty name'),
    (
      ('--mode=predict', '--workdir=x', '--input=a', '--output=WORK/s.dcm', '--format=dicom_seg', '--page'),
      '--page: shows NIfTI label maps, and this is --format=dicom_seg',
    ),
  ],
)
def test_mistakes_on_the_command_line(run_main, tmp_path, arguments, said):
  line = one_line(run_main(*(a.replace('WORK', str(tmp_path)) for a in arguments), check=None))
  assert said in line


@pytest.mark.parametrize(
  'change, said',
  [
    ('--config.model.name=unett', "id you mean 'unet'"),
    ('--config.loss.name=ce_awf', "Did you mean 'ce_afw'"),
    ('--config.loss.ce_afw.rare=("spleeen",)', 'spleeen'),
    ('--config.augment.name=papers', 'paper'),
    ('--config.optimizer.schedule_unit=day', 'epoch'),
    ('--config.data.size=(30, 32)', '32'),
  ],
)
def test_options_that_cannot_be(run_main, demo, trained, tmp_path, change, said):
  line = one_line(run_main(*demo, change, f'--workdir={tmp_path}/run', check=None))
  assert said in line
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_workdir_belongs_to_one_config(run_main, demo, trained):
  before = (trained / 'config.json').read_text()
  line = one_line(run_main(*demo, f'--workdir={trained}', '--config.seed=1', '--config.loss.name=ce_dice', check=None))
  assert 'seed was 0, is 1' in line and 'loss.name' in line and (trained / 'config.json').read_text() == before


def test_a_checkpoint_of_other_organs(run_main, demo, trained, phantoms, tmp_path):
  other = tmp_path / 'data'
  shutil.copytree(phantoms, other)
  text = (other / 'dataset.json').read_text()
  (other / 'dataset.json').write_text(text.replace('"aorta": 1', '"aortic": 1'))
  shutil.copytree(trained, tmp_path / 'runs' / 'small')
  line = one_line(run_main(*demo, f'--config.data.root={other}', f'--workdir={tmp_path}/runs/small', check=None))
  assert 'aortic' in line and 'aorta' in line


def test_a_torn_checkpoint_does_not_predict(run_main, trained, phantoms, tmp_path):
  shutil.copytree(trained, tmp_path / 'torn')
  for folder, _, files in os.walk(tmp_path / 'torn' / 'checkpoints' / 'best'):
    for name in files:
      if os.path.basename(folder) == 'd':
        os.truncate(os.path.join(folder, name), os.path.getsize(os.path.join(folder, name)) // 2)
  line = one_line(
    run_main(
      '--mode=predict',
      f'--workdir={tmp_path}/torn',
      f'--input={phantoms}/imagesTs',
      f'--output={tmp_path}/out',
      check=None,
    ),
    quiet=False,
  )  # as in the test of the full disk
  assert 'checkpoints/best' in line and not list(tmp_path.glob('out/*.nii.gz'))


def test_a_bad_scan_among_good_ones_keeps_what_was_done(run_main, trained, phantoms, tmp_path):
  scans = tmp_path / 'scans'
  shutil.copytree(phantoms / 'imagesTs', scans)
  data = bytearray((scans / 'new_000.nii.gz').read_bytes())
  data[len(data) // 2] ^= 4
  (scans / 'zz_broken.nii.gz').write_bytes(data)
  line = one_line(
    run_main('--mode=predict', f'--workdir={trained}', f'--input={scans}', f'--output={tmp_path}/out', check=None)
  )
  assert 'zz_broken.nii.gz' in line
  assert {p.name for p in (tmp_path / 'out').glob('*.nii.gz')} == {'new_000.nii.gz'}
  assert 'new_000' in (tmp_path / 'out' / 'volumes.csv').read_text()


def test_the_output_never_overwrites_the_scan(run_main, trained, phantoms, tmp_path):
  scan = tmp_path / 'scan.nii.gz'
  shutil.copy(phantoms / 'imagesTs' / 'new_000.nii.gz', scan)
  before = scan.read_bytes()
  assert 'overwrite' in one_line(
    run_main('--mode=predict', f'--workdir={trained}', f'--input={scan}', f'--output={scan}', check=None)
  )
  assert scan.read_bytes() == before


def test_a_data_set_with_several_faults_names_them_all(run_main, demo, phantoms, tmp_path):
  data = tmp_path / 'data'
  shutil.copytree(phantoms, data)
  labels = sorted((data / 'labels').glob('*.nii.gz'))
  first = nib.load(labels[0])
  wrong = np.asarray(first.dataobj).astype(np.uint8)
  wrong[0, 0, 0] = 77
  nib.save(nib.Nifti1Image(wrong, first.affine), labels[0])
  nib.save(
    nib.Nifti1Image(np.zeros_like(np.asarray(nib.load(labels[1]).dataobj)), nib.load(labels[1]).affine), labels[1]
  )
  done = run_main(*demo, f'--config.data.root={data}', f'--workdir={tmp_path}/runs/x', check=None)
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert '77' in done.stderr and labels[0].name in done.stderr and labels[1].name in done.stderr
  assert not list(tmp_path.glob('runs/stores/*/dataset.json'))


def test_a_non_finite_loss_names_step_cases_and_classes(run_main, demo, trained, tmp_path):
  line = one_line(
    run_main(
      *demo,
      f'--config.data.store={next((trained.parent / "stores").iterdir())}',
      f'--workdir={tmp_path}/run',
      '--config.optimizer.learning_rate=1e30',
      check=None,
    )
  )
  assert 'step 2' in line and 'phantom_00' in line and 'gallbladder nan' in line
  assert not list((tmp_path / 'run' / 'checkpoints' / 'last').iterdir())


@pytest.mark.parametrize('largest_file', [pytest.param(1500, marks=SLOW), 20_000])  # for metrics.jsonl; a checkpoint
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_later(run_main, demo, trained, tmp_path, largest_file):
  arguments = (
    *demo,
    f'--config.data.store={next((trained.parent / "stores").iterdir())}',
    f'--workdir={tmp_path}/run',
    '--mode=train',
  )
  line = one_line(
    run_main(*arguments, check=None, largest_file=largest_file, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'cache')),
    quiet=False,
  )  # tensorstore's own threads print what they met
  assert str(tmp_path / 'run') in line and ('Free space' in line or 'ulimit -f' in line)
  run_main(*arguments)
  assert (tmp_path / 'run' / 'checkpoints' / 'last' / '24').is_dir()


def test_a_workdir_that_cannot_be_made(run_main, demo, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  assert str(tmp_path / 'file') in one_line(run_main(*demo, f'--workdir={tmp_path}/file/run', check=None))


def test_a_run_without_a_case_to_score_says_so_first_and_ends_well(run_main, demo, phantoms, tmp_path):
  shutil.copytree(phantoms, tmp_path / 'data')
  index = json.loads((tmp_path / 'data' / 'dataset.json').read_text(encoding='utf-8'))
  index['split'] = {'train': index['split']['train']}
  (tmp_path / 'data' / 'dataset.json').write_text(json.dumps(index), encoding='utf-8')
  short = ('--config.train.epochs=1', '--config.train.steps_per_epoch=2', '--config.train.checkpoint_every_steps=2')
  arguments = (*demo, *short, f'--config.data.root={tmp_path / "data"}', f'--workdir={tmp_path / "runs" / "only"}')
  done = run_main(*arguments)
  assert done.stderr.index('nothing will be scored after the training') < done.stderr.index('loss')
  assert "The split 'test' has no case" in done.stdout
  refused = run_main(*arguments, '--mode=evaluate', check=2).stderr
  assert "the split 'test' of" in refused and 'has no case' in refused
