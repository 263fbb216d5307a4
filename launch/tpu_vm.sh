#!/usr/bin/env bash
# Runs afw_jax on all hosts of a Cloud TPU: gcloud compute tpus tpu-vm ssh NAME --worker=all --command='cd afw_jax && bash launch/tpu_vm.sh --config=configs/synapse.py --workdir=/mnt/shared/synapse'
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
if ! .venv/bin/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("libtpu") is None)'; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    "jax[tpu]==$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.txt)"
fi
export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" # without a TPU the program says so instead of training on the CPU
exec .venv/bin/python -m afw_jax.main --coordinator=auto "$@"
