#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, by JobSet and kubectl, or by XPK.
#
#   launch/gke.sh jobset|xpk [OPTIONS] -- evolving-rl train --config=... --workdir=/runs/...
#
#   --name NAME        of the run                       --image IMAGE    made from launch/Dockerfile
#   --slices N         (default 1)                      --restarts N     (default 20)
#   --dry-run          print the JobSet or the command
# of jobset:
#   --accelerator A    tpu-v5p-slice, tpu-v5-lite-podslice, tpu-v6e-slice, ...
#   --topology T       2x2x4, ...                       --hosts N        of a slice
#   --chips-per-host N (default 4)                      --claim CLAIM    volume claim mounted at /runs
# of xpk:
#   --cluster CLUSTER  --project PROJECT  --zone ZONE   --tpu-type TYPE  v5p-64, ...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

way=${1-}
[[ $way == -h || $way == --help ]] && sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit
[[ $way == jobset || $way == xpk ]] || die "the first argument must be jobset or xpk, got '$way'"
shift

NAME="" IMAGE="" SLICES=1 RESTARTS=20 ACCELERATOR="" TOPOLOGY="" HOSTS="" CHIPS_PER_HOST=4 CLAIM=""
cluster="" project="" zone="" tpu_type=""
while (($#)); do
  case $1 in
    --name) NAME=${2-} && shift 2 ;;
    --image) IMAGE=${2-} && shift 2 ;;
    --slices) SLICES=${2-} && shift 2 ;;
    --restarts) RESTARTS=${2-} && shift 2 ;;
    --accelerator) ACCELERATOR=${2-} && shift 2 ;;
    --topology) TOPOLOGY=${2-} && shift 2 ;;
    --hosts) HOSTS=${2-} && shift 2 ;;
    --chips-per-host) CHIPS_PER_HOST=${2-} && shift 2 ;;
    --claim) CLAIM=${2-} && shift 2 ;;
    --cluster) cluster=${2-} && shift 2 ;;
    --project) project=${2-} && shift 2 ;;
    --zone) zone=${2-} && shift 2 ;;
    --tpu-type) tpu_type=${2-} && shift 2 ;;
    --dry-run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) die "unknown option '$1'; see --help" ;;
  esac
done
(($#)) || die "a command must be given after --, got nothing"
need "$NAME" --name NAME
need "$IMAGE" --image IMAGE

chip_of() {
  case $1 in
    *v5p*) echo v5p ;;
    *v5-lite* | v5e* | v5litepod*) echo v5e ;;
    *v6e*) echo v6e ;;
    *v4*) echo v4 ;;
    *) die "the TPU must be a v4, v5e, v5p or v6e, got '$1'" ;;
  esac
}

# json_list WORD...: as YAML reads it.
json_list() {
  local word out=""
  for word in "$@"; do
    word=${word//\\/\\\\}
    out+=", \"${word//\"/\\\"}\""
  done
  echo "[${out#, }]"
}

with_jobset() {
  local name text
  for name in ACCELERATOR TOPOLOGY HOSTS CLAIM; do
    need "${!name}" "--$(tr '[:upper:]_' '[:lower:]-' <<<"$name")" "$name"
  done
  CHIP=$(chip_of "$ACCELERATOR")
  COMMAND=$(json_list "$@")
  export TOPOLOGY HOSTS CHIPS_PER_HOST CLAIM CHIP COMMAND # read by name
  text=$(<"$here/jobset.yaml")
  for name in NAME RESTARTS SLICES HOSTS ACCELERATOR TOPOLOGY IMAGE CHIP COMMAND CHIPS_PER_HOST CLAIM; do
    text=${text//"\${$name}"/"${!name}"}
  done
  if [[ -n $DRY_RUN ]]; then
    echo "$text"
  else
    kubectl apply -f - <<<"$text"
  fi
}

with_xpk() {
  need "$cluster" --cluster CLUSTER
  need "$project" --project PROJECT
  need "$zone" --zone ZONE
  need "$tpu_type" --tpu-type TPU_TYPE
  local quoted
  quoted=$(printf ' %q' bash launch/worker.sh --chip "$(chip_of "$tpu_type")" --restarts 0 "$@")
  run xpk workload create --workload "$NAME" --cluster "$cluster" --project "$project" --zone "$zone" \
    --tpu-type "$tpu_type" --num-slices "$SLICES" --docker-image "$IMAGE" --max-restarts "$RESTARTS" \
    --command "${quoted# }"
}

"with_$way" "$@"
