import pytest

from tests.experiments.reports import synthetic
from tests.launch.runs.programs import ROOT


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def results(tmp_path):
  """A results folder with every run of every study."""
  synthetic.write_all(tmp_path)
  return tmp_path
