#!/usr/bin/env bash
# Trains and scores a small network on synthetic abdomens, in a few minutes on a CPU: bash launch/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
.venv/bin/python -m afw_jax.data.phantom --output runs/demo-data
.venv/bin/python -m afw_jax.main --config=configs/demo.py --workdir=runs/demo "$@"
.venv/bin/python -m afw_jax.main --mode=predict --workdir=runs/demo --input=runs/demo-data/imagesTs --output=runs/demo/new-scan
