# Makes .venv with the pinned requirements, once; sourced by the other scripts from the project's root.
# shellcheck shell=bash
find_python() {
  local p
  for p in python3.11 python3.12 python3.13 python3; do
    if command -v "$p" >/dev/null && "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$p"; return
    fi
  done
  echo "error: python 3.11 or newer is needed; install it (for instance: apt-get install python3 python3-venv)" >&2
  return 1
}
stamp=.venv/requirements.txt # what was installed; written last
if [ ! -f "$stamp" ] || [ "$(<"$stamp")" != "$(<requirements.txt)" ]; then
  python=$(find_python) || exit 1
  echo "Installing the pinned requirements into .venv (once) ..."
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "error: $python cannot make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
      exit 1
    fi
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || exit 1
  echo "$(<requirements.txt)" > "$stamp"
fi
