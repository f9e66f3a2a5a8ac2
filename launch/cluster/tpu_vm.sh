#!/bin/bash
# Trains on all workers of a TPU VM or pod slice:
#
#   launch/cluster/tpu_vm.sh TPU_NAME start --config=experiments/validation.py:deepseek_moe --workdir=DIR
#   launch/cluster/tpu_vm.sh TPU_NAME log      # the last lines that every worker printed
#   launch/cluster/tpu_vm.sh TPU_NAME stop     # saves and ends; `start` with the same flags goes on
#
# Every worker needs this repository in ~/deepseek-moe (or REPOSITORY=FOLDER) with its .venv (`make setup` there, and
# `.venv/bin/pip install 'jax[tpu]'`), and one DIR they share: a Filestore share, or a bucket with hierarchical
# namespace mounted by gcsfuse. The zone and the project are those of `gcloud config`, or CLOUDSDK_COMPUTE_ZONE and
# CLOUDSDK_CORE_PROJECT. jax.distributed.initialize() asks the machine's metadata who the other workers are.
#
# launch/supervise.sh starts a crashed process again. After a worker has rebooted, give `start` once
# more: it leaves alone the workers where the run is still under way.
set -eu

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

[ $# -ge 2 ] || usage
tpu=$1 verb=$2
shift 2
printf -v cd 'cd %q' "${REPOSITORY:-deepseek-moe}" # relative to the worker's home folder
# When a supervisor has ended, its pid may belong to another program: hence the look at the name.
# shellcheck disable=SC2016 # expanded by the workers
alive='pid=$(cat .train.pid 2>/dev/null) && grep -qs supervise "/proc/$pid/cmdline"'

case $verb in
  start)
    [ $# -gt 0 ] || usage
    printf -v flags ' %q' "$@"
    # In a session of its own and without a terminal, so that the run outlives this connection.
    run="setsid nohup sh launch/supervise.sh .venv/bin/python -m launch.train$flags >>train.log 2>&1 </dev/null &"
    remote="if $alive; then echo already running; else $run echo \$! >.train.pid; echo started; fi"
    ;;
  log) remote='tail -n 20 train.log' ;;
  stop) remote="if $alive; then kill -TERM \$pid; echo stopping; else echo not running; fi" ;;
  *) usage ;;
esac
exec gcloud compute tpus tpu-vm ssh "$tpu" --worker=all --command="$cd && { $remote; }"
