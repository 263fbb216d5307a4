#!/usr/bin/env bash
# Runs afw_jax on all GPUs of this machine, or those in CUDA_VISIBLE_DEVICES: bash launch/gpu.sh --config=configs/synapse.py --workdir=runs/synapse
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
source launch/cuda.sh
exec .venv/bin/python -m afw_jax.main "$@"
