"""Exceptions for bad input: what is wrong, where, and what to do about it."""

import difflib
from collections.abc import Iterable

_LONGEST = 1000  # characters of a word: what a damaged file holds in place of a name can be longer


class InputError(ValueError):
  """Bad input: says which file or option, what is wrong with it, and the cure, in one line.

  Args:
    where: the file, folder or option at fault.
    problem: what is wrong with it.
    cure: what to do about it.
  """

  def __init__(self, where: object, problem: str, cure: str):
    self.where, self.problem, self.cure = str(where), problem, cure
    words = f'{where}: {problem.rstrip(".")}. {cure}'.split()
    super().__init__(' '.join(word if len(word) <= _LONGEST else f'{word[:_LONGEST]}...' for word in words))

  def __reduce__(self):  # travels between processes
    return type(self), (self.where, self.problem, self.cure)


class InputErrors(ValueError):
  """Several `InputError`s found by one check, reported together."""

  def __init__(self, errors: list[InputError]):
    self.errors = list(errors)
    super().__init__(f'{len(self.errors)} problem(s) found:\n' + '\n'.join(f'  - {e}' for e in self.errors))

  def __reduce__(self):
    return type(self), (self.errors,)


def quoted(value: object) -> str:
  """A value from a file as text for an error: at most about 200 characters of it."""
  text = repr(value)
  return text if len(text) <= 200 else f'{text[:200]}...'


def did_you_mean(word: object, known: Iterable[str]) -> str:
  """'Did you mean ...? ' with the known word that is most like `word`, or '' where none is: the start of a cure."""
  near = difflib.get_close_matches(str(word), [k for k in known if isinstance(k, str)], n=1)
  return f'Did you mean {near[0]!r}? ' if near else ''
