"""Makes docs/page.png from the page of a run: python docs/figures/page.py runs/demo/report/index.html docs/page.png

Needs Chromium, its driver and Pillow, as the tests of the page do.
"""

import base64
import io
import pathlib
import sys

from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'tests' / 'support'))
from chromium import browser  # noqa: E402

_SIZE = (1180, 1290)  # of the picture in the page
_COLOURS = 96


def main(page: str, picture: str) -> None:
  """Opens a page in Chromium, waits for its viewer, and saves a picture of its upper part."""
  with browser() as one:
    width, height = _SIZE
    one.driver.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride', {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False}
    )
    one.open(pathlib.Path(page).resolve().as_uri())
    one.drawn()
    top = one.run('return document.querySelector("h2").getBoundingClientRect().top + scrollY - 10')
    clip = {'x': 0, 'y': top, 'width': width, 'height': height, 'scale': 0.8}
    made = one.driver.execute_cdp_cmd('Page.captureScreenshot', {'captureBeyondViewport': True, 'clip': clip})
  with Image.open(io.BytesIO(base64.b64decode(made['data']))) as image:
    image.convert('RGB').quantize(_COLOURS).save(picture, optimize=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
