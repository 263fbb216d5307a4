"""Networks, images and batches that are measured: at full size, and tiny for a dry run on a CPU."""

from peers import SAME_WORK

from gpu_parts.item import Work

CLASSES = 9
# network -> sides of the image, batch: the most telling first
FULL = {
  'unet': ((224, 224), 24),
  'unet3d': ((128, 128, 128), 2),
  'unetr': ((96, 96, 96), 2),
  'transunet': ((224, 224), 24),
  'unetrpp': ((64, 128, 128), 2),
  'unetpp': ((224, 224), 24),
  'vatransunet': ((224, 224), 24),
}
TINY = {
  'unet': ((16, 16), 2),
  'unet3d': ((64, 32, 32), 1),
  'unetr': ((16, 16, 16), 1),
  'transunet': ((32, 32), 1),
  'unetrpp': ((16, 32, 32), 2),
  'unetpp': ((16, 16), 2),
  'vatransunet': ((32, 32), 1),
}


def size(network: str, work: Work) -> tuple[tuple[int, ...], int]:
  """(sides of the image, batch) of a network."""
  return (TINY if work.dry else FULL)[network]


def options(network: str, work: Work) -> dict:
  """Options under which this package and PyTorch do the same work; in a dry run also those of the small network."""
  single_head = {'deep_supervision': False} if network == 'unetrpp' else {}
  return {**SAME_WORK[network], **single_head, **(small(network) if work.dry else {})}


def small(network: str) -> dict:
  """Options of a network that compiles in seconds on a CPU."""
  return {'features': (4, 8)} if network == 'unet' else {'size': 'testing'}


def dtypes(work: Work) -> tuple[str, ...]:
  return ('bfloat16',) if work.quick else ('bfloat16', 'float32')
