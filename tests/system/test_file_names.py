"""File names made from organs, cases and series: every disk takes them, and different names stay apart."""

import itertools
import re

import pytest

from afw_jax.system import atomic_files
from afw_jax.system.file_names import MAX_BYTES, file_name, file_names, same_on_disk, shortened, temporary_name

ODD = (
  'prostate/uterus', 'a\\b', 'a:b', 'a*b?', '"a"', '<a|b>', 'a\0b', 'line\nbreak', '.', '..', '.hidden', 'dot.',
  'space ', ' space', 'CON', 'con.left', 'nul ', 'LPT1.x', 'COM¹', '', '%', '50%', 'a%2Fb', 'a%2fb', 'a' * 300,
  'é' * 200, 'a' * 299 + 'b', '\ud800', 'b\udcff',
)  # fmt: skip


@pytest.mark.parametrize(
  'name', ['liver', 'left kidney', 'Leber_Segment-4b', 'Nüm', '肝臓', '50%', 'console', 'case.1']
)
def test_ordinary_names_stay(name):
  assert file_name(name) == name and file_names([name]) == {name: name}


@pytest.mark.parametrize('name', ODD)
def test_every_disk_takes_it(name, tmp_path):
  found = file_name(name)
  assert found and not re.search(r'[<>:"/\\|?*\x00-\x1f]|^[. ]|[. ]$', found)
  assert not re.fullmatch(r'(?i)(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³]) *(\..*)?', found)
  assert len(found.encode(errors='surrogateescape')) <= 160
  atomic_files.write_text(tmp_path / f'{found}.nii.gz', 'x')
  assert len(list(tmp_path.iterdir())) == 1


def test_different_names_have_different_files():
  assert len({file_name(name) for name in ODD}) == len(ODD)
  assert file_name('a/b') == 'a%2Fb' and file_name('a%2Fb') == 'a%252Fb'


@pytest.mark.parametrize(
  'names',
  [
    ('Liver', 'liver', 'spleen'),
    ('é', 'e\u0301'),
    ('a' * 300, file_name('a' * 300)),
    ('prostate/uterus', 'PROSTATE/uterus'),
    ODD,
  ],
)
def test_names_that_a_disk_takes_for_one_are_told_apart(names):
  found = file_names(names)
  assert set(found) == set(names)
  assert all(same_on_disk(a) != same_on_disk(b) for a, b in itertools.combinations(found.values(), 2))
  if 'spleen' in found:
    assert found['spleen'] == 'spleen'


def test_a_temporary_file_fits_wherever_its_file_does(tmp_path):
  long = 'x' * MAX_BYTES
  assert len(temporary_name(f'/a/{long}', 'host-12').rpartition('/')[2]) <= MAX_BYTES
  assert temporary_name('/a/b.json', 'host-12') == '/a/b.json.host-12.tmp'
  atomic_files.write_text(tmp_path / long, 'whole')
  assert [p.name for p in tmp_path.iterdir()] == [long]
  assert shortened('ab') == 'ab' and shortened('ä' * 200) != shortened('ä' * 201)
