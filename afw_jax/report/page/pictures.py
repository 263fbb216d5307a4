"""Pictures inside a page, as data URIs."""

import base64
import io
import os

from PIL import Image

from afw_jax.errors import InputError

_QUALITY = 82  # of JPEG
_SMALLER = 0.8  # width and height of the next attempt


def data_uri(path: str, limit: int) -> str:
  """A picture as the address of an image element.

  Args:
    path: of a PNG file; the SVG file beside it is taken where there is one that is small enough.
    limit: bytes; a larger picture becomes a JPEG, of fewer pixels if need be.

  Raises:
    InputError: the file is missing or damaged.
  """
  vector = f'{os.path.splitext(path)[0]}.svg'
  for file, kind in ((vector, 'svg+xml'), (path, 'png')):
    if os.path.exists(file) and os.path.getsize(file) * 4 / 3 <= limit:
      with open(file, 'rb') as opened:
        return _uri(kind, opened.read())
  try:
    with Image.open(path) as opened:
      image = opened.convert('RGB')
  except OSError as error:
    raise InputError(path, f'cannot be read as a picture ({error})', 'Run --mode=evaluate or report again.') from error
  while True:
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=_QUALITY, optimize=True)
    if len(data.getvalue()) * 4 / 3 <= limit or min(image.size) < 100:
      return _uri('jpeg', data.getvalue())
    image = image.resize((int(image.width * _SMALLER), int(image.height * _SMALLER)), Image.Resampling.LANCZOS)


def _uri(kind: str, data: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
