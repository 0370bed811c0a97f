#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size: one command from nothing to a run that is followed.
#
#   launch/tpu_pod.sh STEP [OPTIONS] [-- evolving-rl train --config=... --workdir=...]
#
# STEP is one of
#   up        all of create, wait, copy, install, run, follow; after a preemption again, up to --restarts
#   create    ask for the slice (a queued resource), or keep the one of that name
#   wait      until it is there
#   copy      this checkout to every worker
#   install   Python and the package on every worker
#   run       start the command on every worker, detached
#   follow    show the first worker's log until the run ends; its exit code
#   logs      the last lines of every worker's log
#   stop      SIGTERM to the run: it saves itself, and an `up` that follows it ends with 130
#   status    state of the slice
#   delete    give the slice back
#
# Options (or the variable of the name in brackets)
#   --name NAME            of the slice [TPU_NAME]
#   --project PROJECT      [TPU_PROJECT]           --zone ZONE  [TPU_ZONE]
#   --type TYPE            v5p-64, v5litepod-16, v6e-32, ... [TPU_TYPE]; for create and run
#   --runtime VERSION      software image, see the Cloud TPU documentation for the TYPE [TPU_RUNTIME]; for create
#   --spot                 a slice that may be preempted
#   --network NETWORK      --service-account ACCOUNT        passed to create when given
#   --setup COMMAND        run on every worker before the install: mount a file system, log in, ...
#                          Where it fails nothing is started; it runs again when a run is started again.
#   --install COMMAND      instead of the usual install
#   --python PYTHON        interpreter on the workers (default python3.11)
#   --restarts N           how often `up` starts again (default 20)
#   --dry-run              print what would be run
#
# --workdir of the command must be on a file system that all workers see and that outlives them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

readonly REMOTE=evolving-rl
steps="up create wait copy install run follow logs stop status delete"
step=${1-}
[[ $step == -h || $step == --help ]] && sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit
[[ " $steps " == *" $step "* && -n $step ]] || die "STEP must be one of $steps, got '$step'"
shift

name=${TPU_NAME:-} project=${TPU_PROJECT:-} zone=${TPU_ZONE:-} type=${TPU_TYPE:-}
runtime=${TPU_RUNTIME:-} spot="" network="" account="" setup=${TPU_SETUP:-} install=""
python=python3.11 restarts=${RESTARTS:-20} poll=${POLL_S:-30}
while (($#)); do
  case $1 in
    --name) name=${2-} && shift 2 ;;
    --project) project=${2-} && shift 2 ;;
    --zone) zone=${2-} && shift 2 ;;
    --type) type=${2-} && shift 2 ;;
    --runtime) runtime=${2-} && shift 2 ;;
    --spot) spot=1 && shift ;;
    --network) network=${2-} && shift 2 ;;
    --service-account) account=${2-} && shift 2 ;;
    --setup) setup=${2-} && shift 2 ;;
    --install) install=${2-} && shift 2 ;;
    --python) python=${2-} && shift 2 ;;
    --restarts) restarts=${2-} && shift 2 ;;
    --dry-run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
command=("$@")

need "$name" --name TPU_NAME
need "$project" --project TPU_PROJECT
need "$zone" --zone TPU_ZONE
[[ -n $DRY_RUN ]] || command -v gcloud >/dev/null || die "gcloud must be on the PATH, got none"
where=("--project=$project" "--zone=$zone")

# Nothing when there is no such slice, UNKNOWN when nobody answers.
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}" # after what gcloud may warn of
  elif [[ $answer != *NOT_FOUND* ]]; then
    echo UNKNOWN
  fi
}

# on WORKER COMMAND: runs it there (all, or a number), in the copied checkout.
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" \
    --command="cd $REMOTE && $2"
}

create() {
  need "$type" --type TPU_TYPE
  need "$runtime" --runtime TPU_RUNTIME
  (chip_flags "${type%%-*}") || return
  local found="" options=()
  [[ -n $DRY_RUN ]] || found=$(state)
  case $found in
    ACTIVE | WAITING_FOR_RESOURCES | PROVISIONING | ACCEPTED | CREATING)
      echo "tpu_pod.sh: $name is there ($found)" >&2
      return ;;
    "" | UNKNOWN) ;;
    *) delete ;; # FAILED, SUSPENDED: a preempted slice never comes back by itself
  esac
  if [[ -n $spot ]]; then options+=(--spot); fi
  if [[ -n $network ]]; then options+=("--network=$network"); fi
  if [[ -n $account ]]; then options+=("--service-account=$account"); fi
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" ${options[@]+"${options[@]}"}
}

wait_active() {
  if [[ -n $DRY_RUN ]]; then
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
    return
  fi
  local found
  while true; do
    found=$(state)
    case $found in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING | "")
        echo "tpu_pod.sh: $name must become ACTIVE, got ${found:-no such slice}" >&2
        return 1 ;;
    esac
    echo "tpu_pod.sh: $name is $found, waiting" >&2
    sleep "$poll"
  done
}

copy() {
  local archive=${TMPDIR:-/tmp}/$name-code.tar.gz
  # && and || return: within `up`, bash goes on after a command that failed.
  run tar -czf "$archive" -C "$here/.." --exclude=.git --exclude=.venv --exclude=runs . &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:code.tar.gz" "${where[@]}" --worker=all &&
    run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
      --command="mkdir -p $REMOTE && tar -xzf code.tar.gz -C $REMOTE && rm code.tar.gz"
}

install() {
  if [[ -n $setup ]]; then on all "$setup" || return; fi
  local usual="(command -v $python || (sudo apt-get update -qq && sudo apt-get install -y -qq $python $python-venv))"
  usual+=" && $python -m venv .venv && .venv/bin/pip install -q -e '.[train,tpu]'"
  on all "${install:-$usual}"
}

# Detached, because a run must not end with somebody's connection.  What an earlier start left running is
# told to save itself first.
start() {
  need "$type" --type TPU_TYPE
  (chip_flags "${type%%-*}") || return
  ((${#command[@]})) || die "a command must be given after --, got nothing"
  local quoted
  quoted=$(printf ' %q' "${command[@]}")
  local worker="bash launch/worker.sh --chip ${type%%-*} --restarts 3 --state ."
  local end="if [ -s run.pid ] && kill -TERM \$(cat run.pid); then while kill -0 \$(cat run.pid); do sleep 1; done; fi 2> /dev/null"
  on all "$end; rm -f run.pid run.stop && { PATH=\$PWD/.venv/bin:\$PATH nohup $worker$quoted > run.log 2>&1 < /dev/null & } && until [ -s run.pid ]; do kill -0 \$! 2> /dev/null || [ -s run.pid ] || { cat run.log; exit 1; }; sleep 0.1; done"
}

# 255 is ssh's own: the connection broke and the run goes on.  A run that ends so is reported as 1, one
# that `stop` ended as 130, on which nothing is started again.
follow() {
  local lines=+1 code
  while true; do
    code=0
    on 0 "tail -n $lines -F --pid=\$(cat run.pid) run.log; code=\$(cat run.exit); [ \$code != 255 ] || code=1; [ ! -e run.stop ] || code=130; exit \$code" || code=$?
    [[ $code == 255 && -z $DRY_RUN ]] || return "$code"
    case $(state) in ACTIVE | UNKNOWN) ;; *) return "$code" ;; esac
    echo "tpu_pod.sh: the connection to $name broke, following again" >&2
    lines=${LINES_OF_LOG:-40}
    sleep "$poll"
  done
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

up() {
  local attempt code
  for ((attempt = 0; ; attempt++)); do
    create
    code=0
    { wait_active && copy && install && start && follow; } || code=$?
    [[ -z $DRY_RUN && $code != 0 ]] || return "$code"
    # 75: saved before a preemption; 255: a broken connection; no ACTIVE slice: it was taken away
    # without a word.
    case $code in
      75 | 134 | 255) ;;
      130) return "$code" ;; # a person has ended it
      *) [[ $(state) != ACTIVE ]] || return "$code" ;;
    esac
    if ((attempt >= restarts)); then
      echo "tpu_pod.sh: exit code $code after $restarts restarts, giving up" >&2
      return "$code"
    fi
    echo "tpu_pod.sh: exit code $code, starting again ($((attempt + 1)) of $restarts)" >&2
    sleep "$poll"
  done
}

case $step in
  up) up ;;
  create) create ;;
  wait) wait_active ;;
  copy) copy ;;
  install) install ;;
  run) start ;;
  follow) follow ;;
  logs) on all "tail -n ${LINES_OF_LOG:-40} run.log" ;;
  stop) on all "touch run.stop && kill -TERM \$(cat run.pid) || { rm -f run.stop; exit 1; }" ;;
  status) run gcloud compute tpus queued-resources describe "$name" "${where[@]}" ;;
  delete) delete ;;
esac
