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

_WIDTH = 1180
_BETWEEN = 'h2 ~ p, .said'  # what is left out, so that both fit


def main(page: str, picture: str) -> None:
  """Opens a page in Chromium, waits for its viewer, and saves a picture of the organ table and the viewer."""
  with browser() as one:
    one.driver.execute_cdp_cmd(
      'Emulation.setDeviceMetricsOverride', {'width': _WIDTH, 'height': 900, 'deviceScaleFactor': 1, 'mobile': False}
    )
    one.open(pathlib.Path(page).resolve().as_uri())
    one.run(f"for (const part of document.querySelectorAll('{_BETWEEN}')) part.remove()")
    one.drawn()
    edge = 'return document.querySelector(arguments[0]).getBoundingClientRect()[arguments[1]] + scrollY'
    top, bottom = one.run(edge, 'h2', 'top') - 10, one.run(edge, '.stage', 'bottom') + 10
    clip = {'x': 0, 'y': top, 'width': _WIDTH, 'height': bottom - top, 'scale': 0.58}
    made = one.driver.execute_cdp_cmd('Page.captureScreenshot', {'captureBeyondViewport': True, 'clip': clip})
  with Image.open(io.BytesIO(base64.b64decode(made['data']))) as image:
    image.convert('RGB').save(picture, optimize=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
