"""--mode=view: what the local server answers, and to whom."""

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import threading

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, command, environment
from page_reader import Page
from viewed_run import CASE, SHAPE, make_viewed

from afw_jax import view
from afw_jax.errors import InputError


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return make_viewed(tmp_path_factory.mktemp('viewed'))


@pytest.fixture(scope='module')
def port(workdir):
  """Of the server as the command line starts it; Ctrl-C ends it well."""
  started = subprocess.Popen(
    command('--mode=view', f'--workdir={workdir}'),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    text=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell starts jobs in the background
  )
  line = started.stdout.readline()
  yield int(re.match(r'http://127\.0\.0\.1:(\d+)/ ', line)[1])
  started.send_signal(signal.SIGINT)
  assert started.wait(60) == 0


def ask(port, path, method='GET', **headers):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  connection.putrequest(method, path, skip_host=True)
  for name, value in ({'Host': f'127.0.0.1:{port}'} | {k.replace('_', '-'): v for k, v in headers.items()}).items():
    if value is not None:
      connection.putheader(name, value)
  connection.endheaders()
  answer = connection.getresponse()
  return answer.status, answer.read(), answer.headers


def test_the_page_and_every_volume(port, workdir):
  status, body, headers = ask(port, '/')
  page = Page(body.decode())
  assert status == 200 and headers['X-Frame-Options'] == 'DENY'
  assert [case['name'] for case in page.data['cases']] == [CASE, 'c2', 'c0'] and 'details' not in page.data['cases'][0]
  for case in page.data['cases']:
    told = json.loads(ask(port, '/' + case['url'])[1])
    assert told['grid'] == 'Voxels of 1.25 x 1.50 x 3.00 mm'
    shapes = {
      name: nib.Nifti1Image.from_bytes(ask(port, '/' + v['url'])[1]).shape for name, v in told['volumes'].items()
    }
    assert shapes == dict.fromkeys(('scan', 'truth', 'prediction'), SHAPE[::-1])
  assert ask(port, '/', 'HEAD')[:2] == (200, b'') and ask(port, '/?x=1', Host=f'LOCALHOST:{port}')[0] == 200


@pytest.mark.parametrize('path', [
  '/../config.json', '/config.json', '//etc/passwd', '/%2e%2e/%2e%2e/etc/passwd', '/cases/../config.json', '*', '/./',
  '/cases/-1.json', '/cases/1/../../config.json', '/cases/0/other.nii', '/cases/0/scan.nii/..', '/cases/3.json',
  '/cases/0', '/favicon.ico', '/predictions/c0.nii.gz', '/cases/0000000000000001.json', '/cases/0/scan.nii%00',
  'http://[', 'http://evil.example/', 'http://127.0.0.1/', '?x',
])  # fmt: skip
def test_no_path_leads_to_a_file(port, path):
  status, body, _ = ask(port, path)
  assert status == 404 and body == b'There is nothing at this address.'


@pytest.mark.parametrize('headers', [
  {'Host': 'evil.example:PORT'}, {'Host': 'evil.example'}, {'Host': '127.0.0.1'}, {'Host': '127.0.0.1:1'},
  {'Host': None}, {'Host': '127.0.0.1.evil.example:PORT'}, {'Host': ''},
  {'Sec_Fetch_Site': 'cross-site'}, {'Sec_Fetch_Site': 'same-site'},
])  # fmt: skip
def test_others_are_refused(port, headers):
  headers = {name: value and value.replace('PORT', str(port)) for name, value in headers.items()}
  for path in ('/', '/cases/0.json', '/cases/0/scan.nii'):
    status, body, _ = ask(port, path, **headers)
    assert status == 403 and len(body) < 100


def test_a_link_of_another_site_opens_the_page_and_nothing_else(port):
  link = {'Sec_Fetch_Site': 'cross-site', 'Sec_Fetch_Mode': 'navigate', 'Sec_Fetch_Dest': 'document'}
  assert ask(port, '/', **link)[0] == 200 and ask(port, '/cases/0.json', **link)[0] == 403
  assert ask(port, '/', **{**link, 'Sec_Fetch_Dest': 'iframe'})[0] == 403


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'CONNECT', 'FLY'])
def test_other_methods_are_refused(port, method):
  status, _, headers = ask(port, '/', method)
  assert (status, headers['Allow']) == (405, 'GET, HEAD') if method != 'FLY' else status == 501


def test_what_a_request_sends_is_not_taken_for_the_next_one(port):
  with socket.create_connection(('127.0.0.1', port), timeout=10) as other:
    smuggled = f'GET /x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n'
    other.sendall(
      f'GET /x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(smuggled)}\r\n\r\n{smuggled}'.encode()
    )
    answer = b''
    while part := other.recv(4096):
      answer += part
  assert answer.count(b'HTTP/1.1 404') == 1


def test_browsers_that_go_away_and_files_that_no_library_reads_are_quiet_answers(workdir, capfd, monkeypatch):
  with view.make_server(str(workdir)) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = server.server_address
    for _ in range(3):
      with socket.create_connection(here, timeout=10) as gone:
        gone.sendall(f'GET /cases/0/scan.nii HTTP/1.1\r\nHost: 127.0.0.1:{here[1]}\r\n\r\n'.encode())
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # reset
    monkeypatch.setattr(view._Content, '_scene', lambda *_: [][0])
    status, body, _ = ask(here[1], '/cases/1.json')
    assert (status, body) == (500, b'The scan could not be read (IndexError: list index out of range).')
    server.shutdown()
  assert 'Traceback' not in capfd.readouterr().err.partition('an error that reading')[0]


def test_only_this_computer_is_listened_to_and_ports_that_are_taken_are_named(workdir):
  with view.make_server(str(workdir)) as server:
    assert server.server_address[0] == '127.0.0.1'
    with pytest.raises(InputError, match=f'--port: {server.server_port} cannot be used'):
      view.make_server(str(workdir), server.server_port)
  with pytest.raises(InputError, match='config.json'):
    view.make_server(str(workdir.parent))


def test_a_scan_that_cannot_be_read_is_an_answer_with_the_reason(tmp_path):
  workdir = make_viewed(tmp_path)
  content = view._Content(b'', view._page(str(workdir))[1])
  next((workdir / 'predictions').glob('c0*')).unlink()
  kind, make = content.find('/cases/2.json')
  assert kind == 'application/json'
  with pytest.raises(InputError, match='no such file'):
    make()
  _, make = content.find('/cases/1/scan.nii')
  image = nib.Nifti1Image.from_bytes(make())
  assert image.get_data_dtype() == np.int16 and image.shape == SHAPE[::-1]
