#!/usr/bin/env bash
# Makes .venv-interop, an environment of its own for lm-eval and inspect-ai, whose requirements exclude some of ours, once.
#
#   launch/interop.sh             install what constraints-interop.txt pins
#   launch/interop.sh --upgrade   install the newest versions of their requirements, then pin them there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-interop pins=constraints-interop.txt stamp=.venv-interop/.made-from

if [[ ${1:-} == --upgrade ]]; then
  constraint=()
elif [[ -f $stamp ]] && cmp -s "$pins" "$stamp"; then
  exit 0
else
  constraint=(-c "$pins")
fi
rm -rf "$venv"
"${POWERSAMPLE_PYTHON:-.venv/bin/python}" -m venv "$venv"
echo "interop: installing lm-eval and inspect-ai into $venv; the first time takes some minutes" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${constraint[@]}" \
  lm-eval==0.4.13 inspect-ai==0.3.285
# for its schemas alone: the package asks for a newer Python
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
  every-eval-ever==0.3.0
if [[ ${1:-} == --upgrade ]]; then
  {
    echo "# Made by make constraints-interop ($("$venv/bin/python" --version)). Read by launch/interop.sh."
    "$venv/bin/python" -m pip freeze | grep -E '^[A-Za-z0-9._-]+==' | LC_ALL=C sort -f
  } >"$pins"
fi
cp "$pins" "$stamp"
