"""Held-out loss and bits per byte of a run, by domain; or its scores on benchmarks.

  python -m launch.evaluate --workdir=DIR [--step=N] [--dtype=int8] [--format=json]
    [--sources='DOMAIN=FILES;…' --save_routing=FILE.parquet]
  python -m launch.evaluate --workdir=DIR --tasks=hellaswag,piqa|paper [--task_data=FOLDER]
    [--num_fewshot=N --limit=ROWS --chat_template --allow_code --mesh=fsdp=8]

Scores every held-out document, each token once, beside gzip -9 and xz -9 on the same bytes. JSON
has the rows in 'domains', the last of which is over all of them; that one is in 'total', too.
--sources scores all documents of given files instead, as data.sources names them; 'trained_on'
counts by domain those that the run was trained on, null where its data is not there.
--save_routing writes what every token that is scored chose in every MoE layer, and its loss.
$DATA is the folder of the run's prepared data, if that is not where training read it.

--tasks asks EleutherAI's lm-evaluation-harness, see docs/evaluation.md.
"""

from absl import flags

from moe import cli, host_memory
from moe.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to score; the newest without it.')
SOURCES = flags.DEFINE_string('sources', None, 'Text to score, as data.sources names it.')
SAVE_ROUTING = flags.DEFINE_string(
  'save_routing', None, 'Parquet file to write: one row a held-out token and MoE layer.'
)
TASKS = flags.DEFINE_string('tasks', None, "Benchmarks, separated by commas, or 'paper'.")
SHOTS = flags.DEFINE_integer('num_fewshot', None, "Examples in each prompt; the paper's without.")
LIMIT = flags.DEFINE_integer('limit', None, 'Rows of each task; all without it.')
TASK_DATA = flags.DEFINE_string('task_data', '', 'Folder with TASK/SPLIT.jsonl.')
CHAT = flags.DEFINE_bool('chat_template', False, "Ask in the tokenizer's chat template.")
ALLOW_CODE = flags.DEFINE_bool('allow_code', False, 'Run the code that HumanEval and MBPP ask for.')
MESH = flags.DEFINE_string('mesh', '', 'Of --tasks: AXIS=DEVICES,…; one device without it.')
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
