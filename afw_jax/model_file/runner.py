"""Runs this model on a scan, without the package that it was trained with: `pip install jax nibabel` is enough.

python runner.py MODEL.zip SCAN.nii.gz LABELS.nii.gz    label map of a scan
python runner.py MODEL.zip CT.nii.gz PET.nii.gz LABELS.nii.gz    the same for a network of several channels
python runner.py MODEL.zip --check                      compares the example in the file with what this machine gives
python MODEL.zip SCAN.nii.gz LABELS.nii.gz              the same without unpacking this program; so for --check
"""

import os
import sys


def main(arguments: list[str]) -> int:
  """Runs the program in the model file; returns the exit code."""
  inside = os.path.dirname(os.path.abspath(__file__))  # of `python MODEL.zip`: the file itself
  if os.path.isfile(inside):
    arguments = [inside, *arguments]
  if not (len(arguments) >= 3 or arguments[1:] == ['--check']):
    print(__doc__, file=sys.stderr)
    return 2
  model = os.path.abspath(arguments[0])
  # The program as it was when the model was exported, whatever is installed; libraries only where they are not.
  sys.path.insert(0, os.path.join(model, 'code'))
  sys.path.append(os.path.join(model, 'libraries'))
  try:
    from afw_jax.model_file import run
  except ModuleNotFoundError as error:
    print(f'error: {error.name} is missing: pip install jax nibabel, and see that {model} is whole', file=sys.stderr)
    return 2
  return run.main(model, *arguments[1:])


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
