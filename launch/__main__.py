"""One command for every program: `deepseek-moe NAME FLAGS` is `python -m launch.NAME FLAGS`."""

import runpy
import sys

PROGRAMS = (
  *('train', 'evaluate', 'generate', 'chat', 'convert', 'quickstart', 'prepare_data', 'describe'),
  *('sweep', 'report', 'benchmark', 'plan', 'aot', 'select_experts'),
)


def main() -> None:
  """Runs the named program and exits as it does; exits with 2 for a missing or unknown name."""
  name, *flags = sys.argv[1:] or ['']
  if name not in PROGRAMS:
    sys.exit(_refused(name))
  sys.argv = [f'launch.{name}', *flags]
  runpy.run_module(f'launch.{name}', run_name='__main__', alter_sys=True)


def _refused(name):
  asked = f'there is no program {name!r}' if name else 'no program is named'
  print(f'error: {asked}: deepseek-moe takes one of {", ".join(PROGRAMS)}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  main()
