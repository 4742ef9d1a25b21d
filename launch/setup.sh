#!/usr/bin/env bash
# Makes the environment .venv in the checkout, once: launch/setup.sh [dev]   (dev: the tools for make check and make test)
#
# A stamp in .venv remembers what it was made from (pyproject.toml, constraints.txt), so that a second start does
# nothing. A set-up that was interrupted is made again from nothing. Nothing outside the checkout is touched. Packages
# are installed by uv, the one on PATH or one that pip puts into .venv; by pip where uv cannot.
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
project=".${extras:+[$extras]}"
: >"$log"

# Everything goes into the log; downloads of 20 MB and more (uv counts in MiB) and the unpacking are worth a line.
report() {
  tee -a "$log" | awk '
    /^ *Downloading .*\([0-9.]+ ?[MG]i?B\)/ {
      size = $0; sub(/.*\(/, "", size)
      mb = size * (size ~ /GiB/ ? 1073.7 : size ~ /MiB/ ? 1.0486 : 1)
      if (mb >= 20) { n = split($2, part, "/"); print "setup:   " part[n] " (" int(mb) " MB)"; fflush() }
    }
    /^Installing collected packages/ { print "setup:   unpacking " split($0, word, ",") " packages"; fflush() }
    /^Prepared [0-9]+ packages/ { print "setup:   unpacking " $2 " packages"; fflush() }' >&2
}

pip_install() { "$venv/bin/python" -m pip install --no-input --progress-bar off -c constraints.txt "$@"; }

# uv reads nothing that was set for pip, so it is told: where packages come from by lines of a requirements file on its
# input (an index may have a password in it, and command lines are public), the rest by variables. If there is a setting
# that is not known here, pip does it. uv's own settings stay in force.
by_uv() ( # in a subshell: the variables are for uv alone
  set -f
  declare -A settings=()
  found=$("$venv/bin/python" -m pip config list 2>>"$log") || return
  for section in global install :env:; do # as pip reads them: the last one holds
    while IFS== read -r name value; do
      value=${value:1:-1} # without quotes
      settings[$name]=${value//\\n/ }
    done < <(sed -n "s/^$section\.//p" <<<"$found")
  done
  lines=("-c constraints.txt" "-e $project") cert=${REQUESTS_CA_BUNDLE:-${CURL_CA_BUNDLE:-}}
  for name in "${!settings[@]}"; do
    for value in ${settings[$name]}; do
      case $name in
        index-url | extra-index-url | find-links | constraint) lines+=("--$name $value") ;;
        no-index) [[ ! ${value,,} =~ ^(1|y|yes|t|true|on)$ ]] || lines+=(--no-index) ;;
        cert) cert=$value ;;
        trusted-host) export UV_INSECURE_HOST="${UV_INSECURE_HOST:-} $value" ;;
        timeout | default-timeout) export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-${value%.*}} ;;
        cache-dir | no-cache-dir | config-file | disable-pip-version-check | log | no-color | no-input | \
          progress-bar | quiet | require-virtualenv | retries | root-user-action | verbose) ;; # change nothing that is installed
        *) echo "error: pip's setting $name is not known here" >>"$log"; return 1 ;;
      esac
    done
  done
  [[ -z $cert ]] || export SSL_CERT_FILE=$cert
  uv=uv
  if ! uv --version &>/dev/null; then
    uv=$venv/bin/uv
    pip_install --retries 1 uv &>>"$log" || { echo "error: pip cannot install it" >>"$log"; return 1; }
  fi
  # If nobody named a cache, it lies beside the packages, which are linked to it, not copied, and goes at the end.
  export UV_CACHE_DIR=${UV_CACHE_DIR:-${PIP_CACHE_DIR:-$venv}/uv-cache} UV_PYTHON_DOWNLOADS=never
  trap 'rm -rf "$venv/uv-cache"' EXIT
  # Bytecode is left to the first import; where that may not write it, it is made now.
  printf '%s\n' "${lines[@]}" | "$uv" pip install --python "$venv/bin/python" --color never \
    --index-strategy unsafe-best-match ${PYTHONDONTWRITEBYTECODE:+--compile-bytecode} -r - 2>&1 | report
)

cd "$root"
if ! by_uv; then
  reason=$(grep -m 1 -E '^ *(error|×)' "$log" || tail -n 1 "$log")
  reason=${reason#*[:×] }
  say "  uv cannot do it here, so pip does (${reason:-it says nothing})"
  if ! pip_install -e "$project" 2>"$log.errors" | report; then
    say "$(grep -m 1 '^ERROR' "$log.errors" || tail -n 1 "$log.errors")"
    fail "the packages could not be installed; is the package index within reach? (details: $log.errors)"
  fi
fi
printf '%s' "${wanted%% *} run${extras:+ $extras}" >"$stamp"
rm -f "$unfinished"
say "done in $((SECONDS - began)) s"
