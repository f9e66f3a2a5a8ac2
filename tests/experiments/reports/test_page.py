"""The page in headless Chromium, offline, light and dark."""

import pytest

from experiments.studies import STUDIES
from tests import debian, in_process
from tests.launch.runs import programs

_FIGURES = """
figures => figures.map(figure => {
  const box = figure.getBoundingClientRect();
  const texts = [...figure.querySelectorAll('text')].map(
    text => [text.textContent, text.getBoundingClientRect()]);
  const overlapping = texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 &&
    a.top < b.bottom - 2 && b.top < a.bottom - 2).map(([other]) => `${one} | ${other}`));
  const outside = texts.filter(([, a]) =>
    a.left < box.left || a.right > box.right || a.bottom > box.bottom).map(([text]) => text);
  const page = figure.querySelector('.page');
  return {
    id: figure.id, width: box.width, height: box.height, overlapping, outside,
    visible: figure.checkVisibility(),
    page: getComputedStyle(page).fill, ink: getComputedStyle(figure.querySelector('text')).fill,
    paper: getComputedStyle(document.body).backgroundColor,
    marks: figure.querySelectorAll('.point, .line').length,
  };
})
"""


@pytest.fixture(scope='module')
def browser():
  sync_api = pytest.importorskip(
    'playwright.sync_api', reason='no Chromium here: playwright is not installed'
  )
  try:
    [path] = debian.find(debian.CHROMIUM)
  except debian.CannotRun as error:
    pytest.skip(f'no Chromium here: {error}')
  with sync_api.sync_playwright() as playwright:
    # CI runs as root, where Chromium has no sandbox; the page is our own.
    started = playwright.chromium.launch(
      executable_path=path, args=['--no-sandbox', '--disable-dev-shm-usage']
    )
    yield started
    started.close()


def _open(browser, file, scheme='light', width=1000):
  """The page, and a list that collects its errors and its requests for anything but `file`."""
  context = browser.new_context(
    color_scheme=scheme, offline=True, viewport={'width': width, 'height': 800}
  )
  page, faults = context.new_page(), []
  page.on('pageerror', lambda error: faults.append(f'error: {error}'))
  page.on('console', lambda message: faults.append(f'console: {message.text}'))
  page.on(
    'request',
    lambda request: request.url == file.as_uri() or faults.append(f'request: {request.url}'),
  )
  page.goto(file.as_uri())
  return page, faults


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_every_figure_is_there_and_nothing_goes_wrong(scheme, browser, results):
  in_process.check('report', f'--results={results}')
  page, faults = _open(browser, results / 'index.html', scheme)
  figures = page.eval_on_selector_all('figure > svg', _FIGURES)
  drawn = ['claims', *STUDIES]
  assert [figure['id'] for figure in figures] == [f'figure-{name}' for name in drawn]
  dark = lambda colour: sum(map(int, colour[4:-1].split(','))) < 3 * 128  # 'rgb(1, 2, 3)'
  for figure in figures:
    assert (
      figure['visible'] and figure['width'] > 600 and figure['height'] > 100 and figure['marks']
    )
    assert (figure['overlapping'], figure['outside']) == ([], []), figure['id']
    assert figure['page'] == figure['paper'] and dark(figure['page']) == (scheme == 'dark') != dark(
      figure['ink']
    )
  for name in STUDIES:
    assert page.is_visible(f'a[href="#{name}"]') and page.is_visible(f'section#{name}')
  assert faults == []


def test_a_phone_scrolls_no_further_than_down(browser, results):
  in_process.check('report', f'--results={results}')
  page, faults = _open(browser, results / 'index.html', width=390)
  assert page.evaluate('document.documentElement.scrollWidth') <= 390 and faults == []


def test_a_page_without_runs_has_no_figure(browser, tmp_path):
  (tmp_path / 'table1').mkdir()
  (tmp_path / 'table1' / 'runs.jsonl').touch()
  in_process.check('report', f'--results={tmp_path}')
  page, faults = _open(browser, tmp_path / 'index.html')
  assert page.locator('svg').count() == 0 and faults == []
  # Once in the table of all studies, once in the study's section.
  assert page.get_by_text('0 of 25 runs finished').count() == 2


def test_a_figure_by_itself(browser, results):
  """As the README shows it."""
  in_process.check('report', f'--results={results}')
  page, faults = _open(browser, results / 'table1' / 'figure.svg', 'dark')
  # Five losses, seven differences here, and the paper's seven.
  assert page.locator('.point').count() == 5 + 7 + 7 and faults == []


def test_the_committed_page(browser):
  """It has every study with lines, also those beyond the paper, and both pilots."""
  results = programs.ROOT / 'experiments' / 'results'
  page, faults = _open(browser, results / 'index.html')
  sections = page.eval_on_selector_all('section', 'found => found.map(each => each.id)')
  assert set(sections) == {path.parent.name for path in results.glob('*/runs.jsonl')}
  assert len(sections) == len(set(sections)) and faults == []
  figures = page.eval_on_selector_all('section figure > svg', _FIGURES)
  drawn = [name for name in sections if (results / name / 'figure.svg').exists()]
  assert [figure['id'] for figure in figures] == [f'figure-{name}' for name in drawn]
  for figure in figures:
    assert (
      figure['visible']
      and figure['marks']
      and (figure['overlapping'], figure['outside']) == ([], [])
    ), figure
