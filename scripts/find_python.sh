#!/bin/sh
# Print the path of a Python that can run this project: 3.12 to 3.14, with venv, and with libpython as a shared library,
# which VapourSynth's vspipe loads. PYTHON, if set, is the only candidate. Python 3.12 comes first: most tests use it.

check='
import sys
if not (3, 12) <= sys.version_info[:2] <= (3, 14):
    sys.exit("it is Python %d.%d" % sys.version_info[:2])
import ctypes, os, sysconfig
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("it has no module %s (Debian: apt install python3-venv)" % error.name)
library = sysconfig.get_config_var("INSTSONAME") or sysconfig.get_config_var("LDLIBRARY") or ""
folders = [sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("LIBPL") or "", ""]
for path in [os.path.join(folder, library) for folder in folders]:
    try:
        ctypes.CDLL(path)
    except OSError:
        continue
    break
else:
    if sys.platform != "darwin":
        sys.exit("it has no shared libpython (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared; Debian: apt install libpython3-dev)")
print(sys.executable)
'

if [ -n "$PYTHON" ]; then
    "$PYTHON" -c "$check" && exit 0
    echo "PYTHON=$PYTHON cannot be used: Python 3.12, 3.13 or 3.14 is needed." >&2
    exit 1
fi

for version in 3.12 3.13 3.14; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        "$python" -c "$check" 2>/dev/null && exit 0
    done
done
python3 -c "$check" 2>/dev/null && exit 0

cat >&2 <<'END'
No suitable Python found: version 3.12, 3.13 or 3.14, with venv and a shared libpython, on PATH or under pyenv.
Install one and try again, or name it with `make PYTHON=/path/to/python3`:
    Debian, Ubuntu   apt install python3 python3-venv libpython3-dev     (Debian 13, Ubuntu 24.04 and later)
    pyenv            PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.12
END
exit 1
