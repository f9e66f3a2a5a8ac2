"""Held-out loss and bits per byte of a run, by domain; or its scores on benchmarks.

  python -m launch.evaluate --workdir=DIR [--step=N] [--dtype=int8] [--format=json]
    [--sources='DOMAIN=FILES;…' --save_routing=FILE.parquet]
  python -m launch.evaluate --workdir=DIR --tasks=hellaswag,piqa|paper [--task_data=FOLDER]
    [--num_fewshot=N --limit=ROWS --chat_template --allow_code --mesh=fsdp=8]

Scores every held-out document, each token once, beside gzip -9 and xz -9 on the same bytes. JSON
has the rows in 'domains'; the last row is over all domains and is in 'total', too.
--sources scores all documents of the given files instead, written as data.sources; 'trained_on'
counts by domain the documents that the run was trained on, and is null if its data is not there.
--save_routing writes which experts every scored token chose in every MoE layer, and its loss.
$DATA is the folder of the run's prepared data, if that is not where training read it.

--tasks runs EleutherAI's lm-evaluation-harness; see docs/evaluation.md.
"""

from absl import flags

from moe import cli, host_memory
from moe.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to score; by default the newest.')
SOURCES = flags.DEFINE_string('sources', None, 'Text to score instead, written as data.sources.')
SAVE_ROUTING = flags.DEFINE_string(
  'save_routing', None, 'Parquet file to write: a row for each scored token and MoE layer.'
)
TASKS = flags.DEFINE_string('tasks', None, "Benchmarks to run, separated by commas, or 'paper'.")
SHOTS = flags.DEFINE_integer(
  'num_fewshot', None, "Examples in each prompt; by default the paper's number, or else the task's."
)
LIMIT = flags.DEFINE_integer('limit', None, 'Rows of each task to score; by default all.')
TASK_DATA = flags.DEFINE_string('task_data', '', 'Folder of the rows, as TASK/SPLIT.jsonl.')
CHAT = flags.DEFINE_bool(
  'chat_template', False, "Ask in the run's chat template, or else the tokenizer's."
)
ALLOW_CODE = flags.DEFINE_bool('allow_code', False, 'Run the code that HumanEval and MBPP ask for.')
MESH = flags.DEFINE_string('mesh', '', 'Mesh for --tasks: AXIS=DEVICES,…; by default one device.')
DTYPE = cli.dtype_flag()
FORMAT = cli.format_flag()


def main(_):
  as_json = FORMAT.value == 'json'
  if TASKS.value is None:
    from moe.scored_text import score_text

    asked = SOURCES.value, SAVE_ROUTING.value, as_json, DTYPE.value
    print(score_text(WORKDIR.value, STEP.value, *asked))
    return
  if SOURCES.value is not None or SAVE_ROUTING.value is not None:
    raise UserError('--tasks goes with neither --sources nor --save_routing: score twice')
  from moe.tasks.program import run_tasks
  from moe.tasks.suite import Asked

  asked = Asked(
    *(TASKS.value, SHOTS.value, LIMIT.value, TASK_DATA.value, ALLOW_CODE.value, CHAT.value)
  )
  print(run_tasks(WORKDIR.value, STEP.value, asked, MESH.value, as_json, DTYPE.value))


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
