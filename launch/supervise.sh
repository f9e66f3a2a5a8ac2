#!/bin/sh
# Starts a command again when it crashes, as each process of a run does when another has died:
#
#   sh launch/supervise.sh [-n RESTARTS] [-p SECONDS] python -m launch.train …
#
# Ends with the command's exit code when that is 0 (done, or stopped by SIGTERM), 130 or 129 (stopped by
# Ctrl-C, or by a closed terminal) or 2 (bad input: trying again helps nobody), after RESTARTS restarts
# (100), and when it has been asked to stop itself: SIGTERM and Ctrl-C go on to the command. It waits
# SECONDS (5) before a restart, in which the other processes of the run notice and end too.

usage() {
  echo 'error: usage: sh launch/supervise.sh [-n RESTARTS] [-p SECONDS] COMMAND…' >&2
  exit 2
}

is_number() {
  case $1 in '' | *[!0-9]*) return 1 ;; esac
}

restarts=100
pause=5
while getopts :n:p: option; do
  case $option in
    n) restarts=$OPTARG ;;
    p) pause=$OPTARG ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] && is_number "$restarts" && is_number "$pause" || usage

stopping=
child=
stop() {
  stopping=yes
  [ -z "$child" ] || kill -s TERM "$child" 2>/dev/null
}
trap stop TERM INT HUP

count=0
while :; do
  "$@" &
  child=$!
  # A signal that came before the command was there has met no one.
  [ -z "$stopping" ] || kill -s TERM "$child" 2>/dev/null
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal to this shell, too, ends a wait
  wait "$child"
  code=$?
  child=
  case $code in 0 | 2 | 129 | 130) exit "$code" ;; esac
  [ -z "$stopping" ] || exit "$code"
  if [ "$count" -ge "$restarts" ]; then
    echo "supervise: exit code $code, no restarts left of $restarts" >&2
    exit "$code"
  fi
  count=$((count + 1))
  echo "supervise: exit code $code, restart $count of $restarts in $pause s" >&2
  sleep "$pause" &
  wait $!
  [ -z "$stopping" ] || exit "$code"
done
