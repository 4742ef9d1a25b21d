#!/usr/bin/env bash
# Writes constraints.txt: the exact versions of all that is installed in .venv, development tools included.
#
#   launch/constraints.sh             pin what is installed now
#   launch/constraints.sh --upgrade   install the newest versions that pyproject.toml admits, then pin them
#
# Local version suffixes (torch 2.13.0+cpu) are dropped: other package indexes do not have them. Triton is left out: torch
# for GPUs insists on its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[[ -x $python ]] || { echo "constraints: there is no .venv; run make setup first" >&2; exit 2; }

if [[ ${1:-} == --upgrade ]]; then
  "$python" -m pip install --upgrade --upgrade-strategy eager -e '.[dev]'
fi
{
  echo "# Made by make constraints ($("$python" --version)). Read by launch/setup.sh; pyproject.toml has the ranges."
  "$python" -m pip freeze --exclude-editable --exclude powersample --exclude triton | grep -E '^[A-Za-z0-9._-]+==' | sed -E 's/\+[A-Za-z0-9.]+$//' | LC_ALL=C sort -f
} >constraints.txt.new
mv constraints.txt.new constraints.txt
echo "constraints: $(grep -c == constraints.txt) versions pinned"
