#!/usr/bin/env bash
# What one CUDA GPU does with the networks of the recipes celeba_u and cifar10: one table, in under ten minutes.
# Without a CUDA GPU it says so and exits 6. Options go to benchmarks/gpu.py; PYTHON names another Python.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
exec "$python" -m benchmarks.gpu "$@"
