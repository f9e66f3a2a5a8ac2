"""The programs, flags to one call each: `python -m launch.NAME`,
or `deepseek-moe NAME` once installed.

`python -m` puts the folder it is started in before everything that is installed. One who keeps
configs in a folder `experiments/` of his own would so hide ours, which programs and his configs
import: ours is imported here, first, by its place beside this folder.
Modules of the other one are found after ours.
"""

import importlib.util
import sys
from pathlib import Path


def _import_beside(package: str) -> None:
  ours = Path(__file__).parents[1] / package
  own = Path.cwd() / package
  if package in sys.modules or not own.is_dir() or own.samefile(ours):
    return
  spec = importlib.util.spec_from_file_location(
    package, ours / '__init__.py', submodule_search_locations=[str(ours), str(own)]
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules[package] = module
  spec.loader.exec_module(module)


for _package in ('moe', 'experiments'):
  _import_beside(_package)
