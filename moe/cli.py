"""What every program of `launch/` shares: flags, the config made from them,
and errors of one line instead of a traceback.

  # At the top: --config=FILE.py[:VARIANT] and --config.SECTION.KEY=VALUE.
  CONFIG = cli.config_flag()

  def main(argv):
    # A checked moe.config.Config. A program that finds its own configs calls cli.overrides(CONFIG).
    config = cli.config(CONFIG)
    …

  if __name__ == '__main__':
    cli.run(main)

Exit codes: 0, or what main returns; 2 after bad input and 75 after an error that may go away by
itself, both with one line `error: …` on stderr; 130 after Ctrl-C.
No jax import: programs that compute nothing start at once.
"""

import functools
import io
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from moe import compiled, host_memory
from moe import config as moe_config
from moe.errors import UserError, chain, one_line
from moe.finetune import choice
from moe.keys import wanted

# So that a program's --help shows the flags that it defines through this module.
flags.disclaim_key_flags()

_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
_BAD_VALUE = re.compile(r'flag --config\.([\w.]+)=(.*?): ', re.DOTALL)
_UNKNOWN_KEY = re.compile(r'Key "(\w+)" does not exist')  # raised by a locked ConfigDict
# The config files that come with the package, beside this one wherever it is installed.
_SHIPPED = Path(__file__).parents[1] / 'experiments'


def config_flag() -> flags.FlagHolder:
  """Defines --config; `config` turns its value into a Config."""
  return config_flags.DEFINE_config_file(
    'config', help_string='FILE.py[:VARIANT], whose keys --config.SECTION.KEY=VALUE changes.'
  )


def format_flag() -> flags.FlagHolder:
  """Defines --format: 'text' for people, 'json' for programs."""
  return flags.DEFINE_enum(
    'format', 'text', ['text', 'json'], 'text for people, json for programs.'
  )


def dtype_flag() -> flags.FlagHolder:
  """Defines --dtype, the type of a run's parameters in memory."""
  help_ = (
    'Type of the parameters in memory; int8 and int4 hold matrices in few bits. '
    'By default as stored.'
  )
  return flags.DEFINE_enum('dtype', None, moe_config.STORED_TYPES, help_)


def config(flag: flags.FlagHolder, workdir: str | None = None) -> moe_config.Config:
  """The checked config of a parsed `config_flag()`. UserError if the flag is absent or a value is
  wrong. `workdir`: a run to resume, whose own choice of experts serves if the file is gone.
  """
  if not flag.present:
    raise UserError(
      '--config=FILE.py[:VARIANT] is required, for example --config=experiments/quickstart.py'
    )
  if not isinstance(flag.value, ConfigDict):
    raise UserError(
      f'get_config() of the --config file returned {flag.value!r} instead of a ConfigDict'
    )
  return choice.settled(moe_config.from_config_dict(flag.value), workdir)


def config_path(path: str) -> str:
  """The file that --config=PATH means. PATH is a Python file,
  or the name of a config that comes with the package: `proxy`.

  experiments/proxy.py means the packaged config, too, in any folder that has no such file.
  UserError if PATH is neither.
  """
  if path.endswith('.py') and os.path.isfile(path):
    return path
  name = path.removeprefix('experiments/').removesuffix('.py')
  shipped = {file.stem: file for file in sorted(_SHIPPED.glob('*.py')) if _is_config(file)}
  if name in shipped and path in (name, f'experiments/{name}.py'):
    return str(shipped[name])
  raise UserError(
    f'there is no config file {path!r}; those that come with the package are {", ".join(shipped)}'
  )


def overrides(flag: flags.FlagHolder) -> dict[str, object]:
  """The keys that --config.SECTION.KEY=VALUE changes, with their values.
  For programs that call `run(config_file=…)`.
  """
  return config_flags.get_override_values(flags.FLAGS[flag.name])


def run(
  main: Callable[[Sequence[str]], int | None],
  config_file: str = '',
  memory: host_memory.Need | None = None,
  keep_compiled: bool = True,
) -> None:
  """Parses the flags, calls `main([program])` and exits; see the top of this file.
  No program takes bare arguments.

  `config_file`: for a program that takes no --config, the file whose keys its
  --config.SECTION.KEY=VALUE changes.
  `memory`: the least memory that the program needs; None if it computes nothing.
  `keep_compiled`: whether a program that computes keeps what it compiles (moe/compiled.py); False
  where compilation itself is measured or read.
  """
  host_memory.keep_freed_memory()
  # Characters that the terminal's encoding lacks are shown escaped, as on stderr.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    app.run(
      functools.partial(_main, main, memory, keep_compiled),
      flags_parser=functools.partial(_parse, config_file=config_file),
    )
  except UserError as error:
    _refuse(error)
  except KeyboardInterrupt:
    _stop(130, 'interrupted')
  except BrokenPipeError:
    # `… | head` has read enough. Flushing the rest at exit would raise again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _stop(1)
  except Exception as error:
    if not _is_out_of_memory(error):
      raise
    _refuse(
      UserError(
        f'out of memory: {one_line(error)}: lower data.batch_size or evaluation.batch_size, raise '
        'train.microbatches, or set model.remat'
      )
    )


def show_log(name: str) -> None:
  """Sends a logger's lines, from INFO on, to stdout among the progress lines.
  Other loggers show only errors.
  """
  log = std_logging.getLogger(name)
  log.addHandler(std_logging.StreamHandler(sys.stdout))
  log.setLevel(std_logging.INFO)
  log.propagate = False


def _main(main, memory, keep_compiled, argv):
  if memory:
    host_memory.require(memory)
    if keep_compiled:
      compiled.keep()
  return main(argv)


def _is_out_of_memory(error):
  """Whether the host or a device is out of memory. JAX's error is known by its message, since its
  class needs jax.
  """
  return isinstance(error, MemoryError) or (
    isinstance(error, RuntimeError) and str(error).startswith('RESOURCE_EXHAUSTED')
  )


def _refuse(error):
  print(f'error: {" ".join(str(error).split())}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  # Exits at once: while Python shuts down, library threads whose work has failed print tracebacks.
  os._exit(error.exit_code)


def _stop(code, line=''):
  if line:
    print(line, file=sys.stderr, flush=True)
  sys.exit(code)


def _parse(argv: Sequence[str], config_file: str = '') -> list[str]:
  """The flag parser for `app.run`: returns [program]. UserError for anything wrong with the
  flags or the config file.
  """
  if config_file:
    if _config_file(argv):
      raise UserError('this program takes no --config, only --config.SECTION.KEY=VALUE')
    argv = [argv[0], f'--config={config_file}', *argv[1:]]
  try:
    # ml_collections looks for overrides in sys.argv.
    sys.argv = argv = [argv[0], *_resolved(argv[1:])]
    # Set before the first log line, which may be the config file's.
    flags.FLAGS.set_default('verbosity', logging.ERROR)
    _check_overrides(argv)
    rest = flags.FLAGS(argv)
    _check_loaded(argv)
  except (UserError, KeyboardInterrupt):
    raise
  except SystemExit:  # absl exits with 1 after --help
    raise SystemExit(0) from None
  except Exception as error:  # a config file is Python that may raise anything
    raise _explained(error, _config_file(argv)) from error
  if len(rest) > 1:
    raise UserError(
      f'unexpected argument {rest[1]!r}: every option is a flag, --NAME=VALUE (--help lists them)'
    )
  if flags.FLAGS['verbosity'].using_default_value:
    # absl turns an unset verbosity into INFO, at which libraries log every file.
    flags.FLAGS.verbosity = logging.ERROR
  return rest


def _resolved(arguments: Sequence[str]) -> list[str]:
  """The arguments with --flagfile expanded, --config=NAME replaced by the file it means,
  and renamed keys by their present names.
  """
  resolved = []
  for argument in flags.FLAGS.read_flags_from_files(list(arguments), force_gnu=False):
    override = _OVERRIDE.match(argument)
    if override and (now := moe_config.ALIASES.get(override[1])):
      argument = argument[: override.start(1)] + now + argument[override.end(1) :]
    elif resolved and resolved[-1] in ('--config', '-config'):
      argument = _with_path(argument)
    elif argument.startswith(('--config=', '-config=')):
      flag, _, spec = argument.partition('=')
      argument = f'{flag}={_with_path(spec)}'
    resolved.append(argument)
  return resolved


def _with_path(spec: str) -> str:
  """PATH[:VARIANT] with the file that PATH means; see `config_path`."""
  path, colon, variant = spec.partition(':')
  return f'{config_path(path) if path else path}{colon}{variant}'


def _is_config(path: Path) -> bool:
  return '\ndef get_config(' in path.read_text(encoding='utf-8')


def _flags_given(argv: Sequence[str]) -> list[str]:
  """The arguments that may be flags: those before a bare `--`, with --flagfile expanded."""
  given = flags.FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=False)
  return given[: given.index('--')] if '--' in given else given


def _config_file(argv: Sequence[str]) -> str:
  """The path in --config=PATH[:VARIANT] or --config PATH[:VARIANT], or ''.
  absl keeps it only if it could be loaded.
  """
  path = ''
  given = _flags_given(argv)
  for argument, following in zip(given, [*given[1:], '']):
    if argument in ('--config', '-config'):
      path = following
    elif argument.startswith(('--config=', '-config=')):
      path = argument.partition('=')[2]
  return path.split(':', 1)[0]


def _check_overrides(argv: Sequence[str]) -> None:
  """Raises UserError for unknown keys, before ml_collections meets them:
  it would raise a bare KeyError, or look up a dict's methods.
  """
  overrides = [match[1] for match in map(_OVERRIDE.match, _flags_given(argv)) if match]
  if not overrides or 'config' not in flags.FLAGS:
    return  # a program without --config: an unknown flag like any other
  valid = moe_config.keys()
  for key in overrides:
    if any(name.startswith(f'{key}.') for name in valid):
      raise UserError(
        f'config.{key} is a section: give its keys one by one, --config.{key}.KEY=VALUE'
      )
    if key not in valid:
      raise moe_config.unknown_key(key)
  if not _config_file(argv):
    raise UserError(
      f'--config.{overrides[0]} changes a key of --config=FILE.py[:VARIANT], which is not given'
    )


def _check_loaded(argv: Sequence[str]) -> None:
  """Uses the config once: ml_collections holds back an OSError, such as that of a missing file,
  until then.
  """
  if _config_file(argv) and 'config' in flags.FLAGS:
    getattr(flags.FLAGS['config'].value, 'name', None)


def _explained(error: Exception, path: str) -> UserError:
  """The UserError, one line, for what went wrong while flags were parsed.

  absl and ml_collections wrap what a config file raises, sometimes with its whole traceback in the
  message: the innermost exception of the chain is the cause.
  """
  causes = list(chain(error))
  for cause in causes:
    if isinstance(cause, UserError) and '\n' not in str(cause):
      return cause
  if isinstance(error, flags.IllegalFlagValueError) and (bad := _BAD_VALUE.match(str(error))):
    return UserError(
      f'config.{bad[1]} must be {wanted(moe_config.KEYS[bad[1]].type)}, not {bad[2]!r}'
    )
  if isinstance(error, flags.Error) and '\n' not in str(error):
    return UserError(f'{error} (--help lists the flags)')
  return UserError(_in_file(causes, path))


def _in_file(causes: Sequence[BaseException], path: str) -> str:
  """What the config file raised, with the line of the file that led to it, if any."""
  cause = causes[-1]
  if isinstance(cause, SyntaxError):
    return f'{cause.filename}, line {cause.lineno}: {cause.msg}'
  if isinstance(cause, TypeError) and str(cause).startswith('get_config() takes 0 positional'):
    return f'config file {path!r} has no variants: give its name without :VARIANT'
  line = max(_line_in(path, error) for error in causes)
  where = f'{path}, line {line}' if line else f'config file {path!r}'
  if unknown := _UNKNOWN_KEY.search(str(cause)):
    return f'{where}: {moe_config.unknown_key(unknown[1])}'
  return f'{where}: {type(cause).__name__}: {cause}'


def _line_in(path: str, error: BaseException) -> int:
  """The innermost line of the config file on the way to `error`, or 0."""
  line, traceback = 0, error.__traceback__
  while traceback:
    if path and os.path.abspath(traceback.tb_frame.f_code.co_filename) == os.path.abspath(path):
      line = traceback.tb_lineno
    traceback = traceback.tb_next
  return line
