"""The zip of a model file: complete or not there, and refused in one line where it is damaged, newer or hostile."""

import hashlib
import json
import os
import struct
import zipfile

import pytest

from afw_jax.errors import InputError
from afw_jax.model_file import archive

MEMBERS = {'README.md': b'card' * 99, 'networks/1/weights.safetensors': bytes(range(256))}


@pytest.fixture
def model(tmp_path):
  path = tmp_path / 'model.zip'
  archive.write(str(path), MEMBERS.items(), {'organs': ['Leber ä']}, verify=lambda path: None)
  return path


def rewrite(path, change=None, extra=(), **meta):
  """The same zip with other entries of meta.json, a changed dict of members, and further raw members."""
  with zipfile.ZipFile(path) as old:
    members = {name: old.read(name) for name in old.namelist()}
  content = json.loads(members.pop('meta.json'))
  if change:
    change(members)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as new:
    for name, data in [*members.items(), *extra]:
      new.writestr(name, data)
    new.writestr('meta.json', json.dumps({**content, **meta}))


def test_what_is_written_is_read(model):
  meta = archive.read_meta(str(model))
  assert meta['organs'] == ['Leber ä'] and list(meta['members']) == list(MEMBERS)
  assert {name: archive.read(str(model), meta, name) for name in MEMBERS} == MEMBERS
  first = model.read_bytes()
  archive.write(str(model), MEMBERS.items(), {'organs': ['Leber ä']}, verify=lambda path: None)
  assert model.read_bytes() == first  # no time of day in it


def test_a_file_that_is_not_verified_does_not_take_the_place_of_another(model):
  before, seen = model.read_bytes(), []

  def verify(path):
    seen.append(archive.read_meta(path)['organs'])
    raise InputError(path, 'gives other labels', 'Do not.')

  with pytest.raises(InputError, match=f'^{model}: gives other labels'):
    archive.write(str(model), MEMBERS.items(), {'organs': ['other']}, verify=verify)
  assert seen == [['other']] and model.read_bytes() == before and os.listdir(model.parent) == ['model.zip']


def set_sizes(path, name, size):
  """Claims another unpacked size of a member in both of its headers."""
  data = bytearray(path.read_bytes())
  for signature, at, name_at in ((b'PK\x03\x04', 22, 30), (b'PK\x01\x02', 24, 46)):
    start = next(
      i for i in range(len(data)) if data[i:].startswith(signature) and data[i + name_at :].startswith(name.encode())
    )
    data[start + at : start + at + 4] = struct.pack('<I', size)
  path.write_bytes(data)


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[data.index(bytes(range(256))) + 7] ^= 1
  path.write_bytes(data)


HARMS = {
  'nothing': (lambda p: p.unlink(), 'does not exist'),
  'empty': (lambda p: p.write_bytes(b''), 'is not a complete model file'),
  'no zip': (lambda p: p.write_bytes(b'weights' * 99), 'is not a complete model file'),
  'truncated': (lambda p: p.write_bytes(p.read_bytes()[:-40]), 'is not a complete model file'),
  'begins later': (lambda p: p.write_bytes(p.read_bytes()[90:]), 'is not a complete model file'),
  'a folder': (lambda p: (p.unlink(), p.mkdir()), 'cannot be read'),
  'another zip': (lambda p: zipfile.ZipFile(p, 'w').writestr('a', 'b'), 'is not a model file: it has no meta.json'),
  'another format': (lambda p: rewrite(p, format='nnU-Net'), "its format is 'nnU-Net'"),
  'newer': (lambda p: rewrite(p, version=2), 'has format version 2, and this version of afw_jax reads up to 1'),
  'no version': (lambda p: rewrite(p, version='1'), "its format version is '1'"),
  'true': (lambda p: rewrite(p, version=True), 'its format version is True'),
  'no list': (lambda p: rewrite(p, members=['README.md']), 'does not list its members'),
  'no digest': (lambda p: rewrite(p, members={'README.md': 'abc'}), 'does not list its members'),
  'missing': (lambda p: rewrite(p, lambda m: m.pop('README.md')), "'README.md' is missing"),
  'added': (lambda p: rewrite(p, extra=[('more.py', b'')]), "'more.py' is not named"),
  'changed': (lambda p: rewrite(p, lambda m: m.update({'README.md': b'x'})), 'README.md is not what its'),
  'a bit': (flip_bit, 'is not a complete model file .Bad CRC'),
  'above': (lambda p: rewrite(p, extra=[('../evil.py', b'')]), "'../evil.py' would lie outside"),
  'absolute': (lambda p: rewrite(p, extra=[('/etc/evil', b'')]), "'/etc/evil' would lie outside"),
  'inside out': (lambda p: rewrite(p, extra=[('a/../../evil', b'')]), 'would lie outside'),
  'windows': (lambda p: rewrite(p, extra=[('a\\..\\evil', b'')]), 'would lie outside'),
  'a drive': (lambda p: rewrite(p, extra=[('C:evil', b'')]), 'would lie outside'),
  'a zero': (lambda p: rewrite(p, extra=[('meta.json\0.txt', b'')]), 'would lie outside|two members'),
  'twice': (lambda p: rewrite(p, extra=[('README.md', b'')]), 'two members of one name'),
  'bomb': (lambda p: rewrite(p, extra=[('zeros', bytes(6 << 20))]), "'zeros' claims 6291456 bytes"),
  'claims more': (lambda p: set_sizes(p, 'networks/1/weights.safetensors', 1 << 31), 'claims 2147483648 bytes'),
  'claims less': (lambda p: set_sizes(p, 'README.md', 5), 'is not a complete model file|has not the 5 bytes'),
  'large meta': (lambda p: rewrite(p, more='x' * (2 << 20)), 'its meta.json claims 2'),
  'no json': (lambda p: rewrite_meta(p, b'{'), 'meta.json: is damaged'),
  'deep json': (lambda p: rewrite_meta(p, b'[' * 200_000), 'meta.json: is damaged'),
  'a list': (lambda p: rewrite_meta(p, b'[]'), 'meta.json: is not a JSON object'),
  'no text': (lambda p: rewrite_meta(p, b'\xff\xfe\xfd'), 'meta.json: is damaged'),
}  # fmt: skip


def rewrite_meta(path, data):
  with zipfile.ZipFile(path, 'w') as new:
    new.writestr('meta.json', data)


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('harm, said', HARMS.values(), ids=HARMS)
def test_a_damaged_or_hostile_file_is_refused(model, harm, said, monkeypatch):
  monkeypatch.setattr(archive, '_MOST_META', 1 << 20)
  monkeypatch.setattr(archive, '_MOST_COMPRESSED', 5 << 20)
  harm(model)
  with pytest.raises(InputError, match=said) as caught:
    meta = archive.read_meta(str(model))
    for name in MEMBERS:
      archive.read(str(model), meta, name)
  assert str(caught.value).startswith(str(model)) and os.listdir(model.parent) in (['model.zip'], [])


def test_an_encrypted_member_is_refused(model):
  data = bytearray(model.read_bytes())
  start = data.index(b'PK\x01\x02')
  data[start + 8] |= 1
  model.write_bytes(data)
  with pytest.raises(InputError, match='is encrypted'):
    archive.read_meta(str(model))


def test_digests_are_those_of_the_members(model):
  members = archive.read_meta(str(model))['members']
  assert members == {name: hashlib.sha256(data).hexdigest() for name, data in MEMBERS.items()}
