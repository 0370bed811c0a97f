#!/usr/bin/env bash
# Runs one process of a run, and starts it again when it says so.
#
#   launch/worker.sh [--chip CHIP] [--restarts N] [--state DIR] COMMAND...
#
# With --state DIR/run.pid holds the process to signal, and DIR/run.exit the exit code once it ended.
# Exit code 75 means "saved, start me again"; 134 means that JAX ended the process because another one
# of the run was lost.  Both go on from the last checkpoint.  Any other code is passed on at once.
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

chip=none state="" restarts=${RESTARTS:-10} pause=${RESTART_PAUSE_S:-10}
while [[ ${1-} == --* ]]; do
  case $1 in
    --chip) chip=${2-} && shift 2 ;;
    --restarts) restarts=${2-} && shift 2 ;;
    --state) state=${2-} && shift 2 ;;
    *) die "unknown option '$1'; accepted: --chip, --restarts, --state" ;;
  esac
done
(($#)) || die "COMMAND must be given, got nothing"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts must be a number, got '$restarts'"
chip_flags "$chip"
if [[ -n $state ]]; then
  trap 'echo "$?" >"$state/run.exit"' EXIT
  rm -f "$state/run.exit"
  echo "$$" >"$state/run.pid"
fi

child="" ended=""
# The machine is going away: pass it on, wait until the run has saved itself, and do not start again.
trap 'ended=1 SIGNALLED=1; [[ -n $child ]] && kill -TERM "$child" 2>/dev/null' TERM

for ((start = 0; ; start++)); do
  [[ -n $ended ]] && exit 75
  "$@" &
  child=$!
  wait_for "$child"
  code=$?
  [[ $code == 75 || $code == 134 ]] || exit "$code"
  [[ -n $ended ]] && exit 75
  if ((start >= restarts)); then
    echo "worker.sh: exit code $code after $restarts restarts, giving up" >&2
    exit "$code"
  fi
  echo "worker.sh: exit code $code, starting again in $pause s ($((start + 1)) of $restarts)" >&2
  sleep "$pause" &
  wait $!
done
