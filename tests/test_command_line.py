"""Command-line arguments before they are parsed, the help screen, and where configs are found."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT, command, environment

from afw_jax import command_line, main, options
from afw_jax.config import default_config, shipped
from afw_jax.errors import InputError

DEMO = str(ROOT / 'configs' / 'demo.py')


def normalise(*arguments):
  return command_line.normalise(['afw-jax', *arguments])[1:]


@pytest.mark.parametrize(
  'given, expected',
  [
    (['--config=demo'], [f'--config={DEMO}']),
    (['--config', 'demo'], [f'--config={DEMO}']),
    (['-config=demo', '--mode=train'], [f'--config={DEMO}', '--mode=train']),
    (['--config=abdomenct1k_3d:unetrpp'], [f'--config={ROOT}/configs/abdomenct1k_3d.py:unetrpp']),
    (['--config=configs/demo.py:x'], ['--config=configs/demo.py:x']),
    (['--workdir=demo', '--', '--config=nowhere'], ['--workdir=demo', '--', '--config=nowhere']),
  ],
)
def test_configs_are_found_by_name_and_by_path(monkeypatch, given, expected):
  monkeypatch.chdir(ROOT)
  assert normalise(*given) == expected


def test_every_shipped_config_has_a_name_and_a_file_of_the_user_comes_first(monkeypatch, tmp_path):
  assert {'demo', 'folder', 'synapse'} <= set(shipped.names())
  assert all(os.path.isfile(shipped.find_config(name)) for name in shipped.names())
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'demo').write_text('')
  assert shipped.find_config('demo') == 'demo'


def test_an_unknown_config_names_the_nearest(tmp_path):
  with pytest.raises(InputError, match="synapze.*Did you mean 'synapse'"):
    normalise('--config=synapze')
  with pytest.raises(InputError, match='configs/none.py.*abdomenct1k, '):
    normalise('--config=configs/none.py')


@pytest.mark.parametrize(
  'given, expected',
  [
    (['--config.a.b=(8, 16)', '--x=1', '--config.a.b=(4, 8)'], ['--x=1', '--config.a.b=(4, 8)']),
    (['--config.a.b', '(8, 16)', '--config.a.b=(4, 8)'], ['--config.a.b=(4, 8)']),
    (['--config.a.b=1', '--config.a.bc=2', '-config.a.b', '-3'], ['--config.a.bc=2', '--config.a.b=-3']),
    (['--config.a.b', '', '--config.a.b=x', '--config.a.c', ''], ['--config.a.b=x', '--config.a.c=']),
    (['--config.a.flag', '--noconfig.a.flag', '--x'], ['--config.a.flag', '--noconfig.a.flag', '--x']),
  ],
)
def test_of_a_repeated_key_the_last_one_counts(given, expected):
  assert normalise(*given) == expected


TUPLES = [
  f'{section}.{key}' for section in ('data', 'train', 'eval') for key, value in default_config()[section].items()
  if isinstance(value, tuple)
] + ['model.unet.features', 'model.unetrpp.stem', 'augment.extended.scale', 'loss.ce_afw.rare']  # fmt: skip
READ = """
from afw_jax import main
main._dispatch = lambda: print(main.options.CONFIG.value.to_json_best_effort())
main.main()
"""


def test_every_tuple_given_twice_is_the_last_one(tmp_path):
  value = lambda key, n: ('a', 'b')[:n] if key.endswith('rare') else (1.0, 2.0, 3.0)[:n]
  twice = [f'--config.{key}={value(key, n)}' for n in (1, 2) for key in TUPLES]
  program = [sys.executable, '-c', READ, '--config=demo', *twice]
  done = subprocess.run(program, env=environment(), cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  config = json.loads(done.stdout)
  for key in TUPLES:
    found = config
    for part in key.split('.'):
      found = found[part]
    assert len(found) == 2, (key, found)


def test_a_tilde_in_any_path_option_is_the_home_folder(monkeypatch):
  monkeypatch.setenv('HOME', '/home/someone')
  config = default_config()
  config.data.root, config.data.store, config.model.pretrained = '~/scans', '~/store', '~/a.npz'
  config.lock()
  command_line.expand_paths(config)
  assert (config.data.root, config.data.store) == ('/home/someone/scans', '/home/someone/store')
  assert config.model.pretrained == '/home/someone/a.npz'
  assert config.runtime.compilation_cache == '/home/someone/.cache/afw_jax/xla'


def test_no_option_makes_a_folder_called_tilde(tmp_path, phantoms, run_main):
  home = tmp_path / 'home'
  (home / 'scans').mkdir(parents=True)
  for name in ('images', 'labels', 'imagesTs', 'dataset.json'):
    os.symlink(phantoms / name, home / 'scans' / name)
  (home / 'mine.py').write_text(
    'from afw_jax.config import default_config\n\ndef get_config():\n  config = default_config()\n'
    "  config.data.dataset, config.data.root = 'folder', '~/scans'\n  return config\n"
  )
  options = ('--mode=prepare', '--config=~/mine.py', '--workdir=~/runs/a', '--config.data.store=~/st')
  variables = environment(HOME=str(home))
  done = subprocess.run(command(*options), env=variables, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (home / 'st' / 'dataset.json').exists() and (home / 'runs' / 'a' / 'config.json').exists()
  done = run_main('--mode=predict', '--workdir=~/none', '--input=~/in.nii.gz', '--output=~/o', check=2, HOME=str(home))
  assert f'{home}/' in done.stderr and '~' not in done.stderr
  done = run_main('--mode=compare', '--workdir=~/none,~/nothing', check=2, HOME=str(home))
  assert f'{home}/none' in done.stderr and not list(pathlib.Path(tmp_path).glob('**/~')) and not (ROOT / '~').exists()


def test_help_is_one_readable_screen_with_every_mode_and_flag():
  done = subprocess.run(
    [sys.executable, '-m', 'afw_jax.main', '--help'], env=environment(), capture_output=True, text=True
  )
  lines = done.stdout.splitlines()
  assert done.returncode == 0 and len(lines) <= 40 and max(map(len, lines)) <= 110, done.stdout
  assert {re.split(r'\s+', line)[1] for line in lines if re.match(r'  [a-z]+  ', line)} == set(options.MODES)
  ours = [flag.name for flag in main.flags.FLAGS.flags_by_module_dict()['afw_jax.options']]
  assert all(f'--{name}' in done.stdout for name in ours), ours
  assert all(name in done.stdout for name in shipped.names())
  files = re.findall(r'(\S+defaults\.py)', done.stdout)
  assert files and os.path.isfile(files[0])


def test_without_arguments_the_help_is_shown(run_main):
  assert 'afw-jax --config=' in run_main(check=2).stdout


def test_commas_separate_workdirs_and_stay_in_names_of_folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  for name in ('a', 'b,c', 'd', 'home/e', 'one', 'one,two', 'two'):
    os.makedirs(name)
  split = functools.partial(command_line.split_workdirs, several=True)
  assert split('') == [] and split('a') == ['a'] and split('a,d') == ['a', 'd']
  assert split('a,b,c,d') == ['a', 'b,c', 'd'] and split('b,c') == ['b,c']
  assert split('~/e,a') == [f'{tmp_path}/home/e', 'a']
  assert split('a,missing') == ['a', 'missing']
  assert command_line.split_workdirs('new,run', several=False) == ['new,run']
  with pytest.raises(InputError, match=r"one,two can mean \['one', 'two'\] or \['one,two'\]"):
    split('one,two')
  for text in ('a,', ',a', 'a,,d'):
    with pytest.raises(InputError, match='has an empty name'):
      split(text)
