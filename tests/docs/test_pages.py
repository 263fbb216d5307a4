"""The pages hang together: every link leads somewhere, every page is reached, and nothing is about one machine."""

import re

import pytest
from doc_pages import PAGES, ROOT, anchors, links, prose, read


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_pages_headings_and_files(page):
  for link in links(page):
    if re.match(r'https?://', link):
      continue
    path, _, anchor = link.partition('#')
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists(), f'{page}: {link} leads nowhere'
    if anchor:
      assert anchor in anchors(str(target.resolve().relative_to(ROOT))), f'{page}: {link} has no such heading'


def test_every_page_is_reached_from_the_readme():
  reached, waiting = {'README.md'}, ['README.md']
  while waiting:
    page = waiting.pop()
    for link in links(page):
      target = str(((ROOT / page).parent / link.partition('#')[0]).resolve()).removeprefix(f'{ROOT}/')
      if target in PAGES and target not in reached:
        reached.add(target)
        waiting.append(target)
  assert reached == set(PAGES)


@pytest.mark.parametrize('page', PAGES)
def test_files_named_in_the_text_exist(page):
  named = re.findall(r'`((?:afw_jax|configs|launch|tests|benchmarks|docs)/[\w./*]*)`', prose(page))
  for path in named:
    assert list(ROOT.glob(path.rstrip('/'))) or 'NAME' in path, f'{page}: there is no {path}'


@pytest.mark.parametrize('page', PAGES)
def test_no_page_is_about_one_machine(page):
  assert not re.search(r'(?<![\w.~])/(home|work|tmp|root|mnt|opt)/', read(page)), page


@pytest.mark.parametrize('page', PAGES)
def test_mathematics_is_written_as_github_renders_it(page):
  text = re.sub(r'`[^`\n]*`', '', prose(page))
  assert text.count('$$') % 2 == 0, page
  for line in text.replace('$$', '').splitlines():
    assert line.count('$') % 2 == 0, f'{page}: {line}'


@pytest.mark.parametrize('name, limit', [('overlay.png', 120 * 1024), ('page.png', 200 * 1000)])
def test_the_pictures_are_small(name, limit):
  assert (ROOT / 'docs' / name).stat().st_size < limit
