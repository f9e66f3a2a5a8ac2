"""The modules behind each op's api."""

import importlib
from types import ModuleType


def module(op: str, implementation: str) -> ModuleType:
  return importlib.import_module(f'moe.ops.{op}.{implementation}')
