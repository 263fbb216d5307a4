"""Writes a data set of synthetic scans: python -m afw_jax.data.phantom --output=FOLDER."""

import argparse

from afw_jax.data.phantom.make import write_phantoms
from afw_jax.errors import InputError

parser = argparse.ArgumentParser(description='Write a synthetic abdomen data set (NIfTI).')
parser.add_argument('--output', required=True, help='folder to write to')
parser.add_argument('--num_cases', type=int, default=23)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--shape', type=int, nargs=3, default=(32, 120, 120), help='voxels: depth height width')
arguments = parser.parse_args()
try:
  write_phantoms(arguments.output, num_cases=arguments.num_cases, seed=arguments.seed, shape=tuple(arguments.shape))
except InputError as error:
  parser.error(str(error))
print(f'{arguments.num_cases} synthetic scans written to {arguments.output}')
