"""The programs, each of which turns flags into one call: `python -m launch.NAME`,
or `deepseek-moe NAME` once installed.

`python -m` looks for modules in the current folder before the installed packages. A user's own
folder `experiments/` there would hide ours, which the programs and the user's configs import. So
ours is imported here first, by its path beside this folder; a module that it lacks is then looked
up in the user's folder. The same holds for `moe/`.
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
