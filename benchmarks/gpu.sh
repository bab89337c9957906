#!/usr/bin/env bash
# What Titer does with a GPU, in at most 12 minutes and one line of JSON: benchmarks/gpu.sh [--tiny] [PART ...]
# Run it where the extras vllm and ray are installed; a part whose extra is missing says so. --tiny tries every part on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu.py "$@"
