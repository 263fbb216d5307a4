#!/usr/bin/env bash
# Installs, lints and runs every test: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
.venv/bin/ruff check .
.venv/bin/python -m pytest "$@"
