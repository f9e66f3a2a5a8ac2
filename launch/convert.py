"""Weights of others into a run, and a run's weights out.

  python -m launch.convert --from=HF_DIR --workdir=RUN [--dtype=bfloat16|float32]
  python -m launch.convert --to=hf|gguf --workdir=RUN --out=DIR [--step=N] [--dtype=…]

The first makes RUN, which launch.evaluate, launch.generate and notebooks open;
the second makes DIR, for Hugging Face's tools, or with a file for llama.cpp.
Neither writes over anything, and what cannot be converted exactly is refused by name.
docs/weights.md has more.
"""

from absl import flags

from moe import cli
from moe.errors import UserError

FROM = flags.DEFINE_string('from', None, 'Folder of a Hugging Face checkpoint, to be read.')
TO = flags.DEFINE_enum('to', None, ['hf', 'gguf'], 'What to write the run as.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to write out; the newest without it.')
OUT = flags.DEFINE_string('out', None, 'Folder to write, which does not exist.')
DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['bfloat16', 'float32', 'float16'],
  'Type of the numbers; as they are stored without it. float16 for --to=gguf.',
)


def main(_):
  if (FROM.value is None) == (TO.value is None):
    raise UserError('give --from=HF_DIR to read a checkpoint, or --to=hf|gguf to write one')
  if DTYPE.value == 'float16' and TO.value != 'gguf':
    raise UserError('--dtype=float16 goes with --to=gguf: nothing here computes in it')
  if FROM.value is not None:
    for flag in (STEP, OUT):
      if flag.value is not None:
        raise UserError(f'--{flag.name} goes with --to, which writes a run out')
    from moe.convert.from_hf import from_hf

    made = from_hf(FROM.value, WORKDIR.value, DTYPE.value)
    for note in made.notes:
      print(f'note: {note}')
    print(f'{made.tensors:,} tensors, {made.bytes / 1e9:,.2f} GB: {WORKDIR.value} is a run')
    return
  if OUT.value is None:
    raise UserError(f'--to={TO.value} needs --out=DIR, the folder to write')
  if TO.value == 'hf':
    from moe.convert.to_hf import to_hf as write
  else:
    from moe.convert.to_gguf import to_gguf as write

  made = write(WORKDIR.value, OUT.value, STEP.value, DTYPE.value)
  for note in made.notes:
    print(f'note: {note}')
  print(
    f'{made.tensors:,} tensors of step {made.step} as {made.layout}, {made.bytes / 1e9:,.2f} GB '
    f'in {made.files} file{"s" * (made.files > 1)}: {OUT.value}'
  )


if __name__ == '__main__':
  cli.run(main)
