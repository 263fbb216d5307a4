"""Every command that the documentation shows has flags, config keys and files that exist."""

import ast
import functools
import importlib.util
import re
import shlex
import tomllib

import pytest
from absl import flags
from conftest import ROOT
from doc_pages import PAGES, blocks, codes, prose

from afw_jax import command_line, options
from afw_jax.config import shipped

BLOCKS = [block for page in PAGES for block in blocks(page, 'bash')]
INLINE = [
  (page, code) for page in PAGES for code in codes(prose(page))
  if re.match(r'(\w+=\S+ )*(afw-jax|bash|sbatch|python|pip)\b', code) and ' ' in code
]  # fmt: skip
NOTEBOOKS = [path for path in sorted((ROOT / 'colab').glob('*.py')) if path.stem != 'sync']
OPTIONS = [
  code for page in PAGES for code in codes(prose(page)) if code.startswith('--config.') and 'NAME' not in code
]  # fmt: skip


def commands(text: str) -> list[list[str]]:
  """The commands of a script as lists of words, without comments; a && b is two."""
  lines = text.replace('\\\n', ' ').splitlines()
  words = [shlex.split(part, comments=True) for line in lines for part in re.split(r' && ', line)]
  return [command for command in words if command]


def shown_commands(text: str) -> list[list[str]]:
  """The lines of a text that are commands."""
  lines = (line.strip() for line in text.replace('\\\n', ' ').splitlines())
  return [
    command
    for line in lines
    if re.match(r'(\w+ +)?(afw-jax|bash|(\.venv/bin/)?python) -?-?\S', line)
    for command in commands(re.sub(r'^\w+ +(?=afw-jax )', '', line))
  ]


def check(command: list[str]) -> None:
  while re.fullmatch(r'[A-Z_]+=.*', command[0]):  # environment variables
    command = command[1:]
  program, *arguments = command
  name = program.rsplit('/')[-1]
  if name == 'afw-jax':
    check_afw_jax(arguments)
  elif name in ('python', 'python3') and arguments[0] == '-m':
    check_module(*arguments[1:])
  elif name in ('python', 'python3') and 'model.zip' in arguments[:2]:  # what an export has made
    shown = (ROOT / 'afw_jax/model_file/runner.py').read_text(encoding='utf-8')
    assert 'MODEL.zip' in shown and all(flag in shown for flag in arguments if flag.startswith('--'))
  elif name in ('python', 'python3'):
    check_script(*arguments)
  elif name == 'bash':
    check_file(arguments[0])
    if arguments[1:] and arguments[0] == 'launch/test.sh':
      assert not [argument for argument in arguments[1:] if argument.startswith('tests/') and not check_file(argument)]
    elif arguments[1:]:
      check_afw_jax(arguments[1:])
  elif name == 'sbatch' and '--wrap' in arguments:
    check(shlex.split(arguments[arguments.index('--wrap') + 1]))
  elif name == 'sbatch':
    (script,) = [a for a in arguments if a.endswith('.sbatch')]
    check_file(script)
    check_afw_jax(arguments[arguments.index(script) + 1 :])
  elif name == 'pip':
    check_pip(arguments)
  else:
    assert name == 'pre-commit', f'no check for {name}: write one'


def check_file(path: str) -> bool:
  assert (ROOT / path.split('::')[0]).exists(), f'there is no {path}'
  return True


def check_script(path: str, *arguments: str) -> None:
  check_file(path)
  for flag in (a.split('=')[0] for a in arguments if a.startswith('--')):
    assert flag in (ROOT / path).read_text(encoding='utf-8'), f'{path} has no {flag}'


def check_module(module: str, *arguments: str) -> None:
  if module == 'afw_jax.main':
    check_afw_jax(arguments)
  elif module == 'pytest':
    for argument in arguments:
      assert not argument.startswith('tests') or check_file(argument)
  elif module == 'pip':
    check_pip(arguments)
  elif module == 'afw_jax.data.phantom':
    check_script('afw_jax/data/phantom/__main__.py', *arguments)
  else:
    assert module == 'venv', f'no check for python -m {module}: write one'


def check_pip(arguments) -> None:
  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']['optional-dependencies']
  assert arguments[0] == 'install'
  for argument in arguments[1:]:
    if argument in ('jax', 'nibabel'):  # of a model file
      continue
    if match := re.fullmatch(r'(?:\.|afw_jax)\[(.*)\]', argument):
      assert set(match[1].split(',')) <= set(extras), argument
    elif argument.endswith('.txt'):
      check_file(argument)


def check_afw_jax(arguments) -> None:
  """Flags exist and take their values; the config is found, and has every key, of the type of the value."""
  config = None
  for argument in arguments:
    name, _, value = argument.removeprefix('--').partition('=')
    assert argument.startswith('--'), f'{argument} is not an option'
    if name == 'config':
      config = load_config(value)
    elif name.startswith('config.'):
      set_key(config, name.removeprefix('config.'), value)
    elif name == 'mode':
      assert value in options.MODES, value
    elif name != 'help':
      assert name in flags.FLAGS, f'there is no --{name}'
      if value:
        flags.FLAGS[name].parser.parse(value)


@functools.cache
def _module(path: str):
  spec = importlib.util.spec_from_file_location('shown_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load_config(name: str):
  path, _, variant = shipped.find_config(str(ROOT / name) if name.endswith('.py') else name).partition(':')
  config = _module(path).get_config(*filter(None, [variant]))
  config.lock()
  return config


def set_key(config, key: str, value: str) -> None:
  *sections, last = key.split('.')
  for section in sections:
    config = config[section]
  assert last in config, f'the config has no key {key}'
  if not isinstance(config[last], str) and value:
    config[last] = ast.literal_eval(value)  # a TypeError where the type is another


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_block(block):
  for command in commands(block.text):
    check(command)


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_commands_of_a_config(path):
  """The docstring of a config shows the command that runs it."""
  shown = shown_commands(ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))))
  assert any(path.stem in word for command in shown for word in command)
  for command in shown:
    check(command)


def test_commands_of_the_help_screen():
  _, _, examples = command_line.help_text().partition('modes')
  shown = shown_commands(examples.replace('[', '').replace(']', ''))
  modes = {word.removeprefix('--mode=') for command in shown for word in command if word.startswith('--mode=')}
  assert modes | {'all'} == set(options.MODES)
  for command in shown:
    check(command)


@pytest.mark.parametrize('page, code', INLINE)
def test_command_in_a_sentence(page, code):
  for command in commands(code):
    check(command)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_of_a_notebook(path):
  """What its function `run` starts, where the whole command is written down."""
  calls = [node for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(node, ast.Call)]
  texts = [n.args[0].value for n in calls if getattr(n.func, 'id', '') == 'run' and isinstance(n.args[0], ast.Constant)]
  for command in commands('\n'.join(texts)):
    check(command)


@pytest.mark.parametrize('code', OPTIONS)
def test_option_in_a_sentence(code):
  key, _, value = code.partition('=')
  set_key(load_config('synapse'), key.removeprefix('--config.'), value.strip('\'"'))


@pytest.mark.parametrize('wrong', [
  'afw-jax --config=synapsee', 'afw-jax --config=synapse --config.train.epoch=1', 'afw-jax --mode=fly --config=demo',
  'afw-jax --config=synapse --config.train.epochs=many', 'bash launch/gone.sh', 'afw-jax --config=demo --workdirs=x',
  "pip install '.[gpu]'", 'python -m pytest tests/gone.py', 'python benchmarks/spatial.py --nothing', 'rm -r x',
])  # fmt: skip
def test_a_wrong_command_is_found(wrong):
  with pytest.raises((AssertionError, KeyError, TypeError, ValueError)):
    for command in commands(wrong):
      check(command)
