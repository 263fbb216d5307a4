# Adds jax's CUDA libraries to .venv, once (an NVIDIA driver is all they need); sourced after venv.sh.
# shellcheck shell=bash
if ! .venv/bin/python -c 'import sys, importlib.util as u; sys.exit(u.find_spec("jax_cuda12_plugin") is None)'; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    "jax[cuda12]==$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.txt)" || exit 1
fi
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" # without a GPU the program says so instead of training on the CPU
