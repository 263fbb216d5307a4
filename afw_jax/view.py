"""--mode=view: shows a run, or a folder of new label maps, to a browser on this computer, with all scans whole."""

import functools
import http.server
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable

from afw_jax.errors import InputError
from afw_jax.inference import record
from afw_jax.report import report
from afw_jax.report.page import pages, scenes, sources
from afw_jax.report.page.scenes import Scene
from afw_jax.system import atomic_files, terminal

_log = logging.getLogger('afw_jax')

HOST = '127.0.0.1'
_NAMES = ('localhost', HOST)  # that a browser may have called this server by
_KEPT = 2  # scans in memory
_HEADERS = {
  'Cache-Control': 'no-store',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
}
_CASE = re.compile(r'/cases/([0-9]{1,6})\.json')
_VOLUME = re.compile(r'/cases/([0-9]{1,6})/(scan|truth|prediction)\.nii')


def view(workdir: str, port: int = 0) -> None:
  """Serves the page of a folder until Ctrl-C or SIGTERM; call it in the main thread.

  Args:
    workdir: of an evaluated run, or a folder of --mode=predict.
    port: to listen on; 0: any that is free.

  Raises:
    InputError: the folder is neither, or the port is taken.
  """
  with make_server(workdir, port) as server:
    for signum in (
      signal.SIGINT,
      signal.SIGTERM,
    ):  # which a shell lets background jobs ignore
      signal.signal(signum, signal.default_int_handler)
    terminal.say(f'http://{HOST}:{server.server_port}/  shows {workdir} on this computer; Ctrl-C ends it')
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      terminal.say('ended')


class _Server(http.server.ThreadingHTTPServer):
  """Says nothing of browsers that go away while they are answered, as they do when another scan is chosen."""

  def handle_error(self, request, client_address) -> None:
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


def make_server(workdir: str, port: int = 0) -> http.server.ThreadingHTTPServer:
  """The server of `view`, which listens on the loopback interface alone and does not run yet."""
  page, source = _page(workdir)
  content = _Content(page.encode(), source)
  try:
    return _Server((HOST, port), functools.partial(_Handler, content))
  except OSError as error:
    cure = 'Choose another, or leave it out.'
    raise InputError('--port', f'{port} cannot be used ({error.strerror})', cure) from error


def _page(workdir: str) -> tuple[str, sources.Source | str]:
  if os.path.exists(os.path.join(workdir, record.JSON)) and not os.path.exists(os.path.join(workdir, 'config.json')):
    source = sources.of_predictions(workdir)
    return pages.of_predictions(workdir, source, served=True), source
  return report.served_page(workdir)


class _Content:
  """What is served: the page, and the scans of a source, which are read when they are asked for."""

  def __init__(self, page: bytes, source: sources.Source | str):
    self.page, self.source = page, source
    self._lock = threading.Lock()  # one scan is read at a time, and by one thread
    self._read = functools.lru_cache(_KEPT)(lambda place: source.load(place, True))

  def find(self, path: str) -> tuple[str, Callable[[], bytes]] | None:
    """(type, function that makes the content) of a path; None where there is nothing. No path names a file."""
    if path == '/':
      return 'text/html; charset=utf-8', lambda: self.page
    if isinstance(self.source, str):
      return None
    if (match := _CASE.fullmatch(path)) and (place := int(match[1])) < len(self.source.names):
      return 'application/json', lambda: self._details(place)
    known = ('scan', *self.source.masks)
    if (match := _VOLUME.fullmatch(path)) and (place := int(match[1])) < len(self.source.names) and match[2] in known:
      return 'application/octet-stream', lambda: self._scene(place).file(match[2])
    return None

  def _scene(self, place: int) -> Scene:
    with self._lock:
      return self._read(place)

  def _details(self, place: int) -> bytes:
    names = ('scan', *self.source.masks)
    volumes = {name: {'url': f'cases/{place}/{name}.nii'} for name in names}
    told = scenes.details(self._scene(place), whole=True) | {'volumes': volumes}
    return atomic_files.to_json(told).encode()


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers GET and HEAD of browsers on this computer."""

  protocol_version = 'HTTP/1.1'
  server_version, sys_version = 'afw-jax', ''
  timeout = 60  # seconds without a word

  def __init__(self, content: _Content, *rest):
    self._content = content
    super().__init__(*rest)

  def do_GET(self) -> None:
    if not self._is_for_us():
      # A page of another site whose name was made to lead here (DNS rebinding) says that name.
      return self._answer(403, 'text/plain', b'This server answers to its own address only.')
    if 'Content-Length' in self.headers or 'Transfer-Encoding' in self.headers:
      self.close_connection = True  # what else was sent is not read
    found = self._content.find(re.split('[?#]', self.path)[0])
    if found is None:
      return self._answer(404, 'text/plain', b'There is nothing at this address.')
    kind, make = found
    try:
      body = make()
    except (InputError, MemoryError) as error:
      text = str(error) or 'The memory was used up.'
      return self._answer(500, 'text/plain; charset=utf-8', text.encode('utf-8', 'backslashreplace'))
    except Exception as error:  # whatever the damage of a file makes a library raise
      _log.warning('%s: an error that reading a scan should not raise', self.path, exc_info=True)
      text = f'The scan could not be read ({type(error).__name__}: {error}).'
      return self._answer(500, 'text/plain; charset=utf-8', text.encode('utf-8', 'backslashreplace'))
    self._answer(200, kind, body)

  do_HEAD = do_GET

  def _refuse(self) -> None:
    self.close_connection = True  # what else was sent is not read
    self._answer(405, 'text/plain', b'Only GET and HEAD are answered.', {'Allow': 'GET, HEAD'})

  do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

  def _is_for_us(self) -> bool:
    names = self.headers.get_all('Host') or []
    port = self.server.server_address[1]
    own = [f'{name}:{port}' for name in _NAMES] + (list(_NAMES) if port == 80 else [])
    told = lambda name: self.headers.get(f'Sec-Fetch-{name}', '')
    # Another site may have a link to the page, but may load nothing from here.
    opened = told('Mode') == 'navigate' and told('Dest') == 'document' and self.path == '/'
    from_us = told('Site') in ('', 'none', 'same-origin') or opened
    return len(names) == 1 and names[0].lower() in own and from_us

  def _answer(self, status: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
    self.send_response(status)
    for name, value in {'Content-Type': kind, 'Content-Length': str(len(body)), **_HEADERS, **(more or {})}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def log_message(self, format: str, *arguments: object) -> None:
    """Says nothing: a browser shows what went wrong."""
