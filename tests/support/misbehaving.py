"""Functions for the workers of the GPU benchmark: some do what is asked, others fail in each way that a program can."""

import os
import time

from gpu_parts.item import Ready


def works(name: str) -> dict:
  print('other output does not disturb the answers')
  return {'name': name}


def takes_turns(seconds: float, dies_in_round: int = -1) -> Ready:
  done = []

  def run() -> float:
    if len(done) == dies_in_round:
      os.abort()
    done.append(seconds)
    return seconds

  return Ready({'ready': True}, run, lambda: {'done': len(done)})


def fails() -> dict:
  raise ValueError('RESOURCE_EXHAUSTED: out of memory\nwith a second line')


def aborts() -> dict:
  os.write(2, b'Check failed: unknown flag\n')
  os.abort()


def exits() -> dict:
  os.write(2, b'cannot load\n')
  os._exit(3)


def hangs() -> dict:
  time.sleep(600)
  return {}
