#!/usr/bin/env bash
# Runs a quick part of the tests on the newest Python and the newest releases that pyproject.toml allows: bash launch/test_newest.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

find_newer_python() { # newer than 3.11, which the pinned requirements are tested with
  local v p
  for v in 3.13 3.12; do
    for p in "python$v" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$v".*/bin/python; do
      if "$p" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "$p"; return
      fi
    done
  done
  return 1
}
if ! python=$(find_newer_python); then
  echo "No Python newer than 3.11 was found: nothing to test beyond launch/test.sh."
  exit 0
fi

# The ranges of pyproject.toml, without the tools of launch/test.sh that no test here needs.
wanted=$("$python" --version && "$python" - <<'PYTHON'
import tomllib

with open('pyproject.toml', 'rb') as file:
  project = tomllib.load(file)['project']
extras = project['optional-dependencies']
tools = [line for line in extras['test'] if line.startswith(('pytest', 'hypothesis'))]
print(*project['dependencies'], *extras['viz'], *extras['dicom'], *tools, sep='\n')
PYTHON
)
stamp=.venv-newest/requirements.txt # what was asked for; written last. To take later releases: rm -r .venv-newest
if [ ! -f "$stamp" ] || [ "$(<"$stamp")" != "$wanted" ]; then
  echo "Installing the newest allowed releases into .venv-newest (once) ..."
  rm -rf .venv-newest
  "$python" -m venv .venv-newest
  tail -n +2 <<<"$wanted" > .venv-newest/ranges.txt
  .venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-newest/ranges.txt
  echo "$wanted" > "$stamp"
fi
.venv-newest/bin/python -c 'import sys, jax, flax, numpy; print("Python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (jax, flax, numpy)), sep=", ")'

run() {
  .venv-newest/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
}
run tests/models -k 'logits_are or logits_of' "$@" # of each network, against the reference implementation
run tests/losses tests/training/test_step.py tests/distributed/test_xla_flags.py tests/distributed/test_coordination.py \
  tests/distributed/test_sharding.py tests/test_end_to_end.py tests/test_resume.py "$@"
