#!/usr/bin/env bash
# Sees to the two things pip cannot install: OSMesa (off-screen rendering) and Python's venv module.
# As root it installs what is missing; otherwise it prints the one line to type and fails.
#   tools/setup_system.sh [PYTHON]
set -euo pipefail
python="${1:-python3}"

has_osmesa() {
  "$python" - <<'PY'
import ctypes, ctypes.util, sys
for name in (ctypes.util.find_library("OSMesa"), "libOSMesa.so.8", "libOSMesa.so"):
    try:
        sys.exit(0 if name and ctypes.CDLL(name) else 1)
    except OSError:
        continue
sys.exit(1)
PY
}

missing=()
has_osmesa || missing+=(libosmesa6)
"$python" -c "import ensurepip, venv" 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -eq 0 ] && exit 0

line="apt-get update && apt-get install -y ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "setup: a system package is missing; type:  sudo sh -c '$line'" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: no apt-get here; install these packages by your own means: ${missing[*]}" >&2
  exit 1
fi
echo "setup: installing ${missing[*]}" >&2
apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >&2
