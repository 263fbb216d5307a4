#!/usr/bin/env bash
# Installs the requirements, checks style and types, and runs all tests: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright --pythonpath .venv/bin/python
# Compiling takes one core; tests of a file stay together, since they share what is slow to make.
.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
