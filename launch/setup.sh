#!/usr/bin/env bash
# Makes the environment .venv in the checkout, once: launch/setup.sh [dev]   (dev: the tools for make check and make test)
#
# A stamp in .venv remembers what it was made from (pyproject.toml, constraints.txt), so that a second start does
# nothing. A set-up that was interrupted is made again from nothing. Nothing outside the checkout is touched.
# POWERSAMPLE_PYTHON names an interpreter that is to be used as it is: then there is nothing to do.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=${1:-}
venv=$root/.venv stamp=$root/.venv/.powersample-stamp unfinished=$root/.venv/.powersample-unfinished
log=$venv/setup.log

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

[[ -z ${POWERSAMPLE_PYTHON:-} ]] || exit 0

# "<hash> run" or "<hash> run dev"; the first is part of the second, so the development environment serves for runs too.
wanted="$(cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -c 1-64) run${extras:+ $extras}"
is_ready() { [[ -f $stamp && -x $venv/bin/python && "$(cat "$stamp") " == "$wanted "* ]]; }
is_ready && exit 0

find_python() { # prints the first interpreter that fits
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.14; do # tested ones first
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

# Two starts at once: the second waits, and then finds everything done. The lock is on the directory itself.
if command -v flock >/dev/null; then
  exec 9<"$root"
  flock 9
  is_ready && exit 0
fi

place=$root
[[ ! -e $venv ]] || place=$venv
[[ -w $place ]] || fail "$place cannot be written by $(id -un), so no environment can be made in it; use a copy of the" \
  "checkout that can be written, or name an interpreter that has all packages by POWERSAMPLE_PYTHON."

[[ ! -e $unfinished ]] || { say "the last set-up was interrupted; starting again"; rm -rf "$venv"; }
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(find_python) || fail "Python 3.11 to 3.14 is needed and python3 is $(python3 --version 2>&1 || true);" \
    "install one, or name an interpreter that has all packages by POWERSAMPLE_PYTHON."
  say "making $venv with $python ($("$python" --version))"
  rm -rf "$venv"
  if ! reason=$("$python" -m venv "$venv" 2>&1); then
    rm -rf "$venv"
    [[ $reason != *ensurepip* ]] || reason="it has no ensurepip (on Debian and Ubuntu: apt install python3-venv)"
    fail "$python cannot make an environment in $venv: ${reason##*$'\n'}"
  fi
fi

# Whoever names a cache wants it; else packages go nowhere but into .venv.
export PIP_DISABLE_PIP_VERSION_CHECK=1
[[ -n ${PIP_CACHE_DIR:-} ]] || export PIP_NO_CACHE_DIR=1
touch "$unfinished"
if [[ -f $stamp ]] && grep -q ' dev$' "$stamp"; then extras=dev; fi # tools that are there stay up to date
say "installing the packages pinned in constraints.txt; the first time takes some minutes (details: $log)"
began=$SECONDS
# Downloads of 20 MB and more are worth a line, the rest is in the log.
if ! (cd "$root" && "$venv/bin/python" -m pip install --no-input --progress-bar off \
  -c constraints.txt -e ".${extras:+[$extras]}") > >(tee "$log" | awk '
    /^ *Downloading .*\(([0-9.]+) MB\)/ { size = $0; sub(/.*\(/, "", size); if (size + 0 >= 20) { n = split($2, part, "/"); print "setup:   " part[n] " (" int(size) " MB)"; fflush() } }
    /^Installing collected packages/ { print "setup:   unpacking " split($0, word, ",") " packages"; fflush() }' >&2) 2>"$log.errors"; then
  say "$(grep -m 1 '^ERROR' "$log.errors" || tail -n 1 "$log.errors")"
  fail "the packages could not be installed; is the package index within reach? (details: $log.errors)"
fi
printf '%s' "${wanted%% *} run${extras:+ $extras}" >"$stamp"
rm -f "$unfinished"
say "done in $((SECONDS - began)) s"
