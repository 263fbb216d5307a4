"""A process that has imported the program and forks for each command, which then starts without the 2 s of imports.

A command runs in a process of its own, as `python -m afw_jax.main` does, in the environment of the server.
"""

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile


class ForkServer:
  """Starts the server with the first command.

  Args:
    cwd: where the commands run.
    environment: of the commands.
  """

  def __init__(self, cwd: pathlib.Path, environment: dict[str, str]):
    self._cwd, self._environment = cwd, environment
    self._server: subprocess.Popen | None = None

  def run(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess:
    """Runs the program with these arguments to its end, which is killed after `timeout` seconds."""
    if self._server is None:
      self._server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=self._cwd,
        env=self._environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
    with tempfile.TemporaryDirectory() as folder:
      out, err = (pathlib.Path(folder, name) for name in ('stdout', 'stderr'))
      print(json.dumps([arguments, str(out), str(err), timeout]), file=self._server.stdin, flush=True)
      answer = self._server.stdout.readline()
      assert answer, f'the fork server ended with {self._server.wait()}'
      code = json.loads(answer)
      if code is None:
        raise subprocess.TimeoutExpired(arguments, timeout, err.read_text())
      return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

  def close(self) -> None:
    """Ends the server."""
    if self._server is not None:
      self._server.stdin.close()
      self._server.wait(10)


def serve() -> None:
  """Reads lines [arguments, stdout, stderr, seconds] and answers each with its exit code; null if it took too long."""
  import afw_jax.main

  commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  for line in commands:
    arguments, out, err, timeout = json.loads(line)
    child = os.fork()
    if child == 0:
      for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
      os.close(answers.fileno())
      sys.argv = [afw_jax.main.__file__, *arguments]
      sys.modules['__main__'] = afw_jax.main  # its worker processes import it, as under python -m
      afw_jax.main.main()
      return
    print(json.dumps(_exit_code(child, timeout)), file=answers, flush=True)


def _exit_code(child: int, timeout: float) -> int | None:
  watched = os.pidfd_open(child)  # readable when it ends
  in_time = select.select([watched], [], [], timeout)[0]
  os.close(watched)
  if not in_time:
    os.kill(child, signal.SIGKILL)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  return code if in_time else None


if __name__ == '__main__':
  serve()
