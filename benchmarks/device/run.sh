#!/usr/bin/env bash
# The prepared check of an accelerator: parts of nine minutes at most, results in OUT/results.jsonl.
# On a bare machine it first installs what prepare.sh put into .device/; see steps.py --help.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
site=${TMPDIR:-/tmp}/evolving-rl-device-site
if compgen -G ".device/packages/*.tar" > /dev/null; then
  mkdir -p "$site"
  for pack in .device/packages/*.tar; do tar -xf "$pack" -C "$site"; done
  export PYTHONPATH="$PWD:$site"
else
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
if compgen -G ".device/model/part-*" > /dev/null; then
  cat .device/model/part-* > .device/model/model.gguf
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
# The share of the card by which docs/hardware.md says what fits; jax takes 0.75 where nothing is said.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# jax goes on with the CPU where a plugin fails to start; named, that is an error.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/evolving-rl-device-cache}
exec "$python" benchmarks/device/steps.py "$@"
