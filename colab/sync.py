"""Makes the notebooks of this folder from their sources, and runs them: python colab/sync.py [--run] [NAME ...].

NAME.py is the source (py:percent, a comment `# %%` before each cell), NAME.ipynb is made from it, with outputs. The
address of the repository (the badge, and what is installed outside a clone) is that of pyproject.toml, written into
both. Edit the source, never the notebook: a test compares them.
"""

import argparse
import base64
import io
import os
import pathlib
import re
import tempfile
import tomllib
from collections.abc import Mapping

import jupytext
import nbclient
import nbformat
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = ('quickstart', 'the_loss', 'your_own_scans', 'networks_and_weights', 'paper_and_scale')
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
COLAB = 'https://colab.research.google.com/github/'  # without a repository: a dialog that asks for one
METADATA = {
  'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
  'language_info': {'name': 'python'},
}


def address() -> str:
  """The repository that pyproject.toml names (`Repository` in `[project.urls]`); '' if it names none."""
  project = tomllib.loads((FOLDER.parent / 'pyproject.toml').read_text(encoding='utf-8'))['project']
  return project.get('urls', {}).get('Repository', '')


def badge(name: str, repository: str) -> str:
  """The Markdown of the badge that opens a notebook in Colab."""
  place = repository.removeprefix('https://github.com/').rstrip('/')
  return f'[![Open in Colab]({BADGE})]({COLAB}{f"{place}/blob/main/colab/{name}.ipynb" if place else ""})'


def with_address(text: str, name: str, repository: str) -> str:
  """A source with the badge and the address of the repository.

  Args:
    text: of NAME.py, with an older address or none.
    name: of the notebook.
    repository: https://github.com/OWNER/NAME, or ''.
  """
  text = re.sub(r"^REPOSITORY = '.*?'", f"REPOSITORY = '{repository}'", text, flags=re.M)
  return re.sub(r'\[!\[Open in Colab\]\(.*?\)\]\(.*?\)', lambda _: badge(name, repository), text)


def from_source(text: str) -> nbformat.NotebookNode:
  """The notebook of a source, without outputs; equal sources give equal notebooks."""
  notebook = jupytext.reads(text, fmt='py:percent')
  notebook.metadata = nbformat.from_dict(METADATA)
  notebook.nbformat, notebook.nbformat_minor = 4, 5
  for i, cell in enumerate(notebook.cells):
    cell.id, cell.metadata = f'cell-{i}', nbformat.from_dict({})
  return notebook


def execute(
  notebook: nbformat.NotebookNode, folder: str, environment: Mapping[str, str], timeout: int | None = None
) -> nbformat.NotebookNode:
  """Runs all cells in a folder, in place.

  Args:
    notebook: from `from_source`.
    folder: where the kernel starts and the notebook writes.
    environment: variables of the kernel, which also imports this clone.
    timeout: seconds for each cell; None: no limit.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raised an exception, or a check of the notebook failed.
  """
  client = nbclient.NotebookClient(
    notebook, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': folder}}, coalesce_streams=True
  )
  return client.execute(env={**environment, 'PYTHONPATH': str(FOLDER.parent)})


def tidy(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
  """Outputs as they are kept: without times and the folder of this run, and with small pictures, in place."""
  notebook.metadata = nbformat.from_dict(METADATA)  # a run adds the version of its Python
  for cell in notebook.cells:
    cell.metadata.pop('execution', None)
    for output in cell.get('outputs', ()):
      if 'text' in output:
        output.text = without_times(output.text.replace(f'{folder}/', ''))
      if 'image/png' in output.get('data', {}):
        output.data['image/png'] = smaller(output.data['image/png'])
  return notebook


def without_times(text: str) -> str:
  """What a command printed, without the times of progress bars and the blanks that cleared them."""
  text = re.sub(r' \[\d[\d:]*<[^]]*\](?=\S)', '\n', text)  # a message that came behind a bar
  return re.sub(r'^[ \t]+$\n', '', re.sub(r' \[\d[\d:]*<[^]]*\]', '', text), flags=re.M)


def smaller(png: str) -> str:
  """A PNG with a palette of 256 colours, as base64."""
  palette = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB').quantize(256, dither=Image.Dither.NONE)
  file = io.BytesIO()
  palette.save(file, format='PNG', optimize=True)
  return base64.b64encode(file.getvalue()).decode()


def take_outputs(notebook: nbformat.NotebookNode, stored: nbformat.NotebookNode) -> bool:
  """Takes over the outputs of a stored notebook, in place, if the code is the same (only texts or the address changed).

  Returns:
    Whether the code is the same.
  """
  cells, old = ([cell for cell in n.cells if cell.cell_type == 'code'] for n in (notebook, stored))
  code = lambda cells: [with_address(cell.source, '', '') for cell in cells]  # wherever it is installed from
  if code(cells) != code(old):
    return False
  for cell, before in zip(cells, old):
    cell.outputs, cell.execution_count = before.outputs, before.execution_count
  return True


def sync(name: str, run: bool = False) -> None:
  """Writes NAME.ipynb from NAME.py with the outputs of a run.

  Args:
    name: of the notebook.
    run: also run it where only texts have changed since the last run.
  """
  source, path = FOLDER / f'{name}.py', FOLDER / f'{name}.ipynb'
  text = source.read_text(encoding='utf-8')
  if (addressed := with_address(text, name, address())) != text:
    source.write_text(addressed, encoding='utf-8')
  notebook = from_source(addressed)
  if run or not path.exists() or not take_outputs(notebook, nbformat.read(path, as_version=4)):
    full_size = {key: value for key, value in os.environ.items() if key != 'AFW_JAX_SMALL'}
    with tempfile.TemporaryDirectory() as folder:
      tidy(execute(notebook, folder, full_size), folder)
  nbformat.write(notebook, path)
  print(f'{path.name}: {path.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description='Make the notebooks from their sources, and run those whose code changed.'
  )
  parser.add_argument('names', nargs='*', default=NAMES, metavar='NAME', help=f'{", ".join(NAMES)} (default: all)')
  parser.add_argument('--run', action='store_true', help='run them also where only texts have changed')
  arguments = parser.parse_args()
  for given in arguments.names:
    sync(given, arguments.run)
