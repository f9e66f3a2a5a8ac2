"""A conversation with a run, in the terminal or over a pipe, a question a line.

python -m launch.chat --workdir=DIR [--temperature=0.8 --template=deepseek --dtype=int8]

/reset forgets the conversation, /system TEXT sets the system message. Replies are written to stdout
as they come. Turns that no longer fit into the context are forgotten, the oldest first.
"""

import io
import sys

from absl import flags

from moe import cli, host_memory

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to talk to; by default the newest.')
TEMPLATE = flags.DEFINE_enum(
  'template',
  '',
  ['', 'deepseek', 'plain', 'tokenizer'],
  "How turns are written; '': as the run was trained, else as its tokenizer says, else deepseek.",
)
SYSTEM = flags.DEFINE_string('system', '', 'The system message.')
MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 512, 'Maximum number of tokens in a reply.')
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, 'Sampling temperature; 0 is greedy.')
TOP_K = flags.DEFINE_integer('top_k', 0, 'Sample from the k most likely tokens; 0: from all.')
TOP_P = flags.DEFINE_float(
  'top_p', 0.95, 'Sample from the fewest tokens that together have this probability.'
)
SEED = flags.DEFINE_integer('seed', 0, 'Seed for sampling.')
DTYPE = cli.dtype_flag()


def main(_):
  from moe.chat import Conversation, Options, talk, tell
  from moe.generate import Sampling, only_generating
  from moe.run import load_run

  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
  sampling.check()
  run = only_generating(load_run(WORKDIR.value, STEP.value, DTYPE.value))
  options = Options(sampling, MAX_NEW_TOKENS.value, SEED.value)
  conversation = Conversation(run, options, TEMPLATE.value)
  conversation.system = SYSTEM.value
  if isinstance(sys.stdin, io.TextIOWrapper):
    # A line that is not UTF-8 then gets an error of its own, in place of a decoding error.
    sys.stdin.reconfigure(errors='surrogateescape')
  tell(f'{run.config.name}, step {run.step}, template {conversation.template_name}')
  talk(conversation, sys.stdin, sys.stdout)


if __name__ == '__main__':
  cli.run(main, memory=host_memory.SAMPLING)
