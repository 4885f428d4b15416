#!/usr/bin/env bash
# Puts the Autobahn|Testsuite, the WebSocket conformance suite, into a folder of its own.
#
#   tests/conformance/install.sh [FOLDER]    (else $AUTOBAHN_DIR, else the temporary directory)
#
# The suite is a Python 2.7 program, so that is what must be there (find_py27 lists where it is
# looked for), with python3 and venv to make the environment; a C compiler and the zlib headers
# only where two accelerators have no wheel. The packages come from the index that pip is set up
# for, every one pinned. Running it again is free while the pins are the same.
# Environment: PYTHON3 and PYTHON27 name interpreters; FORCE=1 starts over.
set -euo pipefail

DIR=${1:-${AUTOBAHN_DIR:-${TMPDIR:-/tmp}/autobahn-testsuite}}
PYTHON3=${PYTHON3:-python3}

# The newest versions for Python 2.7 that work together.
pins() { cat <<'PINS'
autobahntestsuite==25.10.1
autobahn==0.10.9
txaio==2.1.0
Twisted==19.10.0
incremental==16.10.1
zope.interface==4.6.0
constantly==15.1.0
Automat==22.10.0
hyperlink==21.0.0
PyHamcrest==1.10.1
attrs==21.4.0
idna==2.10
pyOpenSSL==19.1.0
cryptography==3.3.2
cffi==1.15.1
pycparser==2.21
enum34==1.1.10
ipaddress==1.0.23
service_identity==18.1.0
pyasn1==0.5.1
pyasn1-modules==0.3.0
klein==17.10.0
Werkzeug==1.0.1
Jinja2==2.11.3
MarkupSafe==1.1.1
typing==3.10.0.0
unittest2==1.1.0
traceback2==1.4.0
linecache2==1.0.0
argparse==1.4.0
six==1.16.0
wsaccel==0.6.2
ujson==2.0.3
setuptools==44.0.0
PINS
}
VIRTUALENV_PIN='virtualenv==20.21.1'    # last line that can make 2.7 environments

say() { printf 'autobahn install: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

works27() { # it starts, is 2.7, and has the modules that pip and wstest import
  "$1" -c 'import sys, ssl, zlib, ctypes; assert sys.version_info[:2] == (2, 7)' >/dev/null 2>&1
}

find_py27() {
  local c
  for c in "${PYTHON27:-}" \
           "$(command -v python2.7 2>/dev/null || true)" \
           "$(command -v python2 2>/dev/null || true)" \
           "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7*/bin/python2.7 \
           /opt/pyenv/versions/2.7*/bin/python2.7 \
           /usr/local/bin/python2.7 /opt/python2.7/bin/python2.7 \
           "$(command -v pypy 2>/dev/null || true)"; do
    [ -n "$c" ] && [ -x "$c" ] && works27 "$c" && { printf '%s\n' "$c"; return 0; }
  done
  # Older Debian and Ubuntu releases have it as a package.
  if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    for c in python2.7 pypy; do
      if apt-cache policy "$c" 2>/dev/null | grep -q 'Candidate: [0-9]'; then
        say "installing the distribution's $c"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$c" "$c-dev" >&2 || true
        c=$(command -v "$c" 2>/dev/null || true)
        [ -n "$c" ] && works27 "$c" && { printf '%s\n' "$c"; return 0; }
      fi
    done
  fi
  return 1
}

check() { # what is installed starts, with its accelerators and all of its cases
  [ -x "$DIR/venv/bin/python" ] || return 1
  "$DIR/venv/bin/python" - 2>/dev/null <<'PY'
import sys
import wsaccel, ujson
from autobahn.websocket.utf8validator import Utf8Validator
import autobahntestsuite, autobahn
from autobahntestsuite import fuzzing
from autobahntestsuite.case import Cases
assert len(Cases) == 517, len(Cases)
sys.stdout.write("autobahntestsuite %s, autobahn %s, %d cases\n"
                 % (autobahntestsuite.version, autobahn.version, len(Cases)))
PY
}

WANT=$( { pins; echo "$VIRTUALENV_PIN"; } | sha256sum | cut -c1-16)
if [ -z "${FORCE:-}" ] && [ "$(cat "$DIR/.installed" 2>/dev/null || true)" = "$WANT" ] && check >/dev/null; then
  say "already installed in $DIR: $(check)"
  exit 0
fi

PY27=$(find_py27) || die "no working CPython 2.7 found: set PYTHON27=/path/to/python2.7 (for instance one made with pyenv install 2.7.18)"
say "python 2.7: $PY27"

rm -rf "$DIR/venv" "$DIR/boot" "$DIR/.installed"
mkdir -p "$DIR"
"$PYTHON3" -m venv "$DIR/boot"
"$DIR/boot/bin/python" -m pip install --quiet --disable-pip-version-check "$VIRTUALENV_PIN"
# --no-download: uses the last pip and setuptools for 2.7, which virtualenv carries
"$DIR/boot/bin/python" -m virtualenv --quiet --no-download -p "$PY27" "$DIR/venv"
pins > "$DIR/requirements.txt"
PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_PYTHON_VERSION_WARNING=1 \
  "$DIR/venv/bin/python" -W ignore -m pip install --quiet --no-deps -r "$DIR/requirements.txt"
rm -rf "$DIR/boot"

check >/dev/null || die "installed, but it does not start: run $DIR/venv/bin/wstest -a to see why"
echo "$WANT" > "$DIR/.installed"
say "installed in $DIR: $(check)"
