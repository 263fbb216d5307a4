"""Chromium without a window, driven by Selenium, with WebGL2 in software."""

import contextlib
import functools
import io
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')


def _found() -> tuple[str | None, str | None]:
  return next(filter(None, map(shutil.which, _BROWSERS)), None), shutil.which('chromedriver')


NEEDED = pytest.mark.skipif(
  None in _found(), reason='Chromium and its driver are not installed (Debian, Ubuntu: apt-get install chromium-driver)'
)


@contextlib.contextmanager
def browser() -> Iterator['Browser']:
  """A browser that is ended with the block."""
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location, driver = _found()
  for argument in (
    '--headless=new',
    '--no-sandbox',  # which root cannot have
    '--disable-dev-shm-usage',
    '--enable-unsafe-swiftshader',
    '--use-angle=swiftshader',
    '--window-size=720,640',  # small: every pixel is drawn by the CPU
    '--mute-audio',
    '--force-color-profile=srgb',
    '--no-first-run',
    '--disable-background-networking',
  ):
    options.add_argument(argument)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  started = webdriver.Chrome(options, Service(driver))
  try:
    yield Browser(started)
  finally:
    started.quit()


class Browser:
  """What tests do with a page."""

  def __init__(self, driver):
    self.driver = driver

  def open(self, address: str, *, state: str = 'ready') -> None:
    """Opens a page and waits until its viewer is in a state."""
    self.driver.get(address)
    self.until(state)

  def until(self, state: str = 'ready') -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(self.driver, 60, 0.05).until(
      lambda _: self.run('return document.getElementById("viewer").dataset.state') == state,
      lambda: f'{self.text("viewer-status")} {self.messages()}',
    )

  def messages(self) -> list[str]:
    """Warnings and errors on the console since the last call."""
    return [entry['message'] for entry in self.driver.get_log('browser') if entry['level'] in ('WARNING', 'SEVERE')]

  def run(self, script: str, *arguments):
    """What a script returns."""
    return self.driver.execute_script(script, *arguments)

  def text(self, name: str) -> str:
    """The text of an element by its id."""
    return self.run('return document.getElementById(arguments[0]).textContent', name)

  def find(self, selector: str):
    """The first element of a CSS selector."""
    return self.driver.find_element('css selector', selector)

  def choose(self, name: str, value: str) -> None:
    """Chooses an option of a list by its value, and waits for two frames."""
    self.run(
      'const e = document.getElementById(arguments[0]); e.value = arguments[1];'
      "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}));",
      name,
      value,
    )
    self.drawn()

  def click(self, selector: str) -> None:
    """Clicks an element as a user does, and waits for two frames."""
    element = self.find(selector)
    self.run('arguments[0].scrollIntoView({block: "center"})', element)
    element.click()
    self.drawn()

  def drawn(self) -> None:
    """Waits until what was changed is on the screen."""
    self.driver.execute_async_script(
      'const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));'
    )

  def canvas(self) -> np.ndarray:
    """(H, W, 3) what the canvas shows."""
    element = self.find('#viewer-canvas')
    self.run('arguments[0].scrollIntoView({block: "center"})', element)
    self.drawn()
    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
      return np.asarray(image.convert('RGB')).astype(int)


@functools.cache
def _hue(colour: str) -> np.ndarray:
  rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)
  return rgb - rgb.mean()


def share(picture: np.ndarray, colour: str) -> float:
  """The share of pixels that are tinted by a colour, '#rrggbb', more than a little."""
  tint = picture - picture.mean(-1, keepdims=True)
  length = np.linalg.norm(tint, axis=-1)
  hue = _hue(colour)
  alike = (tint @ hue) / np.maximum(length * np.linalg.norm(hue), 1e-9)
  return float(((length > 25) & (alike > 0.9)).mean())
