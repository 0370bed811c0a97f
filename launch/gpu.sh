#!/usr/bin/env bash
# Trains on the GPUs of this machine, or as one machine of several.
#
#   launch/gpu.sh [OPTIONS] -- evolving-rl train --config=... --workdir=...
#
#   --processes N          processes on this machine, each with its share of the GPUs (default 1)
#   --coordinator H:P      of several machines: where process 0 listens ...
#   --machines M           ... how many machines ...
#   --machine I            ... and which this one is, from 0
#   --restarts N           how often to start again after a preemption (default 10)
#   --dry-run              print what would be run
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/common.sh"

processes=${PROCESSES:-1} coordinator=${COORDINATOR:-} machines=${MACHINES:-1} machine=${MACHINE:-0}
restarts=${RESTARTS:-10}
while (($#)); do
  case $1 in
    --processes) processes=${2-} && shift 2 ;;
    --coordinator) coordinator=${2-} && shift 2 ;;
    --machines) machines=${2-} && shift 2 ;;
    --machine) machine=${2-} && shift 2 ;;
    --restarts) restarts=${2-} && shift 2 ;;
    --dry-run) DRY_RUN=1 && shift ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit ;;
    --) shift && break ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
(($#)) || die "a command must be given after --, got nothing"
for value in "$processes" "$machines" "$machine"; do
  [[ $value =~ ^[0-9]+$ ]] || die "--processes, --machines and --machine must be numbers, got '$value'"
done
((processes >= 1 && machines >= 1 && machine < machines)) ||
  die "--machine must be in 0 .. machines - 1, got $machine of $machines with $processes processes"
if ((machines > 1)); then need "$coordinator" --coordinator COORDINATOR; fi
: "${coordinator:=127.0.0.1:8476}"

gpus=()
if [[ ${JAX_PLATFORMS:-} != cpu ]]; then
  command -v nvidia-smi >/dev/null || die "nvidia-smi must be on the PATH (or set JAX_PLATFORMS=cpu), got none"
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
  ((${#gpus[@]} % processes == 0)) ||
    die "--processes must divide the number of GPUs (${#gpus[@]}), got $processes"
fi

total=$((processes * machines)) pids=()
trap 'SIGNALLED=1; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
for ((i = 0; i < processes; i++)); do
  assign=()
  if ((${#gpus[@]} && processes > 1)); then
    share=$((${#gpus[@]} / processes))
    mine=$(IFS=,; echo "${gpus[*]:i * share:share}")
    assign+=("CUDA_VISIBLE_DEVICES=$mine")
  fi
  if ((total > 1)); then
    assign+=("JAX_COORDINATOR_ADDRESS=$coordinator" "JAX_NUM_PROCESSES=$total")
    assign+=("JAX_PROCESS_ID=$((machine * processes + i))")
  fi
  start=(env "${assign[@]}" bash "$here/worker.sh" --chip gpu --restarts "$restarts" "$@")
  if [[ -n $DRY_RUN ]]; then
    run "${start[@]}"
  else
    "${start[@]}" &
    pids+=($!)
  fi
done
code=0
for pid in "${pids[@]}"; do
  wait_for "$pid" || code=$?
done
exit "$code"
