"""Converts released weights to a run, a run to other formats, or a dense run to a MoE run.

  python -m launch.convert --from=HF_DIR --workdir=RUN [--dtype=bfloat16|float32]
  python -m launch.convert --to=hf|gguf --workdir=RUN --out=DIR [--step=N] [--dtype=…]
  python -m launch.convert --upcycle=DENSE_RUN --config=CONFIG --workdir=RUN [--step=N]
    [--router=even|random] [--seed=0] [--dtype=…]

The first makes RUN, which launch.evaluate, launch.generate and the notebooks open. The second makes
DIR, for Hugging Face's tools or with a file for llama.cpp. The third makes RUN, for
train.init_from. None overwrites anything; each refuses by name what it cannot convert.
docs/weights.md has more.
"""

from absl import flags

from moe import cli
from moe.errors import UserError

FROM = flags.DEFINE_string('from', None, 'Folder of the Hugging Face checkpoint to read.')
TO = flags.DEFINE_enum('to', None, ['hf', 'gguf'], 'Format to write the run in.')
UPCYCLE = flags.DEFINE_string('upcycle', None, 'Folder of the dense run to read.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint of the run to read; by default the newest.')
OUT = flags.DEFINE_string('out', None, 'Folder to write, which must not exist.')
TYPES = ['bfloat16', 'float32', 'float16']
DTYPE = flags.DEFINE_enum(
  'dtype', None, TYPES, 'Type of the numbers; by default as stored. float16: --to=gguf only.'
)
ROUTER = flags.DEFINE_enum('router', 'even', ['even', 'random'], 'How --upcycle sets the gates.')
SEED = flags.DEFINE_integer('seed', 0, 'Seed for what --upcycle draws.', lower_bound=0)
CONFIG = cli.config_flag()
_MODES = {'from': FROM, 'to': TO, 'upcycle': UPCYCLE}
# The modes that a flag goes with, for flags that do not go with all.
_GOES_WITH = {'out': 'to', 'step': 'to upcycle', **dict.fromkeys(('router', 'seed'), 'upcycle')}


def main(_):
  given = [name for name, flag in _MODES.items() if flag.value is not None]
  if len(given) != 1:
    raise UserError('give one of --from=HF_DIR, --to=hf|gguf and --upcycle=DENSE_RUN')
  mode = given[0]
  for name, modes in {**_GOES_WITH, 'config': 'upcycle'}.items():
    if flags.FLAGS[name].present and mode not in modes.split():
      raise UserError(f'--{name} goes with --{" and --".join(modes.split())}')
  if DTYPE.value == 'float16' and TO.value != 'gguf':
    raise UserError('--dtype=float16 goes with --to=gguf: nothing here computes in it')
  if TO.value and OUT.value is None:
    raise UserError(f'--to={TO.value} needs --out=DIR, the folder to write')
  if mode == 'from':
    from moe.convert.from_hf import from_hf

    made = from_hf(FROM.value, WORKDIR.value, DTYPE.value)
  elif mode == 'upcycle':
    from moe.convert.upcycle import Options, upcycle

    options = Options(STEP.value, DTYPE.value, ROUTER.value, SEED.value)
    made = upcycle(UPCYCLE.value, cli.config(CONFIG), WORKDIR.value, options)
  else:
    from moe.convert import to_gguf, to_hf

    write = {'hf': to_hf.to_hf, 'gguf': to_gguf.to_gguf}[TO.value]
    made = write(WORKDIR.value, OUT.value, STEP.value, DTYPE.value)
  for note in made.notes:
    print(f'note: {note}')
  print(f'{made.in_words}: {OUT.value or WORKDIR.value}{" is a run" * (mode != "to")}')


if __name__ == '__main__':
  cli.run(main)
