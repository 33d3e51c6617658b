#!/bin/sh
# Make .venv from the lock file; arguments go to `uv sync`. Needs Python 3.11 to 3.13; brings uv where it is missing.
set -eu
cd "$(dirname "$0")/.."

find_python() {
  for name in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      "$name" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  echo "No suitable Python. Found none of 3.11, 3.12, 3.13 on PATH; install one, or say PYTHON=/path/to/python." >&2
  exit 1
}

find_uv() {
  # A uv that does not run here (a version manager's stand-in, say) is as good as none.
  if uv --version >/dev/null 2>&1; then
    echo uv
    return
  fi
  if ! .cache/uv-venv/bin/python -m uv --version >/dev/null 2>&1; then
    echo "setup: uv is not installed: bringing a private one (once)" >&2
    rm -rf .cache/uv-venv
    install_uv >&2
  fi
  echo .cache/uv-venv/bin/uv
}

install_uv() {
  mkdir -p .cache
  # Debian's Python may lack ensurepip; pip alone does then.
  if "$python" -m venv .cache/uv-venv >/dev/null 2>&1; then
    .cache/uv-venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8,<1'
  else
    rm -rf .cache/uv-venv
    "$python" -m pip install --quiet --disable-pip-version-check --target .cache/uv-venv/lib 'uv>=0.8,<1'
    mkdir -p .cache/uv-venv/bin
    ln -sf ../lib/bin/uv .cache/uv-venv/bin/uv
  fi
}

python=$(find_python)
uv=$(find_uv)
echo "setup: $("$python" --version) at $python; $("$uv" --version); the first time takes a minute or two" >&2
# Never a downloaded interpreter: the one found is what the user has.
export UV_PYTHON_DOWNLOADS=never
# The environment is .venv here, whatever else is active in the shell.
unset VIRTUAL_ENV UV_PROJECT_ENVIRONMENT
# Compiled now: each driver and each Python worker of Spark is a new process, and where PYTHONDONTWRITEBYTECODE is set
# it would compile pandas, pyarrow and pyspark again.
"$uv" sync --frozen --compile-bytecode --python "$python" --quiet "$@"
echo "setup: ready" >&2
