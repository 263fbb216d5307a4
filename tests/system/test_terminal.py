"""A process without standard streams, or with closed ones."""

import subprocess
import sys

import pytest
from conftest import command, environment

from afw_jax.system import terminal


@pytest.mark.parametrize('stream', [None, 'closed'])
def test_bars_and_lines_do_without_streams(monkeypatch, tmp_path, stream):
  if stream:
    stream = (tmp_path / 'x').open('w')
    stream.close()
  monkeypatch.setattr(sys, 'stderr', stream)
  monkeypatch.setattr(sys, 'stdout', stream)
  assert not terminal.is_interactive()
  terminal.say('a line')
  with terminal.progress_bar(total=2, desc='x') as bar:
    bar.update(1)
    bar.set_postfix_str('y')
  assert list(terminal.progress_bar([1, 2])) == [1, 2]


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
  code = f"""
import os, subprocess
from afw_jax.system import terminal
terminal.open_missing_streams()
with open({str(tmp_path / 'data')!r}, 'w') as file:
  assert file.fileno() > 2
  os.write(2, b'a message of a library')
  print('a line')
subprocess.run(['bash', '-c', 'echo a line && echo another >&2'], check=True)
"""
  for closed in ('<&-', '>&-', '2>&-', '<&- >&- 2>&-'):
    script = f'exec "$0" -c "$1" {closed}'
    subprocess.run(['bash', '-c', script, sys.executable, code], env=environment(), check=True, timeout=60)
    assert (tmp_path / 'data').read_bytes() == b''


def test_a_run_without_streams(demo, trained, tmp_path):
  store = next((trained.parent / 'stores').iterdir())
  arguments = command(*demo, f'--workdir={tmp_path}/run', f'--config.data.store={store}', '--config.train.epochs=1')
  done = subprocess.run(
    ['bash', '-c', 'exec "$@" <&- >&- 2>&-', 'bash', *arguments], env=environment(), capture_output=True, timeout=300
  )
  assert done.returncode == 0, done.stdout[-2000:]
  assert (tmp_path / 'run' / 'report' / 'report.md').exists()


@pytest.mark.parametrize(
  'where, code', [('2>&1 | true', 0), ('2> /dev/full', 0), ('> /dev/full', 2), ('2>&1 | head -c 9', 0)]
)
def test_output_that_nobody_reads_does_not_end_the_work(tmp_path, where, code):
  program = f"""
import sys, time
from afw_jax.system import terminal
terminal.keep_streams_open()
for i in terminal.progress_bar(range(200)):
  print('line', i, flush=True)
  time.sleep(0.001)
open({str(tmp_path / 'done')!r}, 'w').close()
sys.exit(2 if terminal.lost_output() else 0)
"""
  script = f'"$0" -c "$1" {where}; exit ${{PIPESTATUS[0]}}'
  done = subprocess.run(['bash', '-c', script, sys.executable, program], env=environment(), timeout=60)
  assert (tmp_path / 'done').exists() and done.returncode == code


def test_a_log_on_a_full_disk_ends_no_prediction(trained, phantoms, tmp_path):
  arguments = command(
    '--mode=predict', f'--workdir={trained}', f'--input={phantoms / "imagesTs"}', f'--output={tmp_path}/o'
  )
  done = subprocess.run(
    ['bash', '-c', 'exec "$@" > /dev/full 2> /dev/full', 'bash', *arguments], env=environment(), timeout=300
  )
  assert done.returncode == 2 and list((tmp_path / 'o').glob('*.nii.gz'))


def test_a_reader_that_is_slow_gets_everything(tmp_path):
  program = """
import os, sys
from afw_jax.system import terminal
os.set_blocking(1, False)
terminal.keep_streams_open()
for i in range(40000):
  print(i)
sys.exit(2 if terminal.lost_output() else 0)
"""
  script = '"$0" -c "$1" | (sleep 0.5; cat > "$2"); exit ${PIPESTATUS[0]}'
  arguments = ['bash', '-c', script, sys.executable, program, str(tmp_path / 'out')]
  assert subprocess.run(arguments, env=environment(), timeout=60).returncode == 0
  assert (tmp_path / 'out').read_text().split() == [str(i) for i in range(40000)]
