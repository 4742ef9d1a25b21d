#!/usr/bin/env bash
# A run as a Ray job on a cluster that is up:   bash launch/ray_job.sh RUN_DIR [options of `powersample run`]
#
#   RAY_API_SERVER_ADDRESS   the cluster's dashboard               (http://127.0.0.1:8265)
#   RAY_AUTH_TOKEN           its token, where it asks for one      (~/.ray/auth_token)
#   POWERSAMPLE_PYTHON       an interpreter of the cluster's nodes (the one of this checkout, seen by all nodes)
#   POWERSAMPLE_*            as for every run; they travel with the job
#
# RUN_DIR is an absolute path on storage that lasts and that the head node sees: the job's own directory is a copy that
# vanishes. Submitted again with the same RUN_DIR the run goes on. Ctrl-C leaves the job running; the printed
# `ray job stop` ends it, and it can go on.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run_dir=${1:-}
if [[ $run_dir != /* ]]; then
  echo "ray_job: the first argument is the run directory, an absolute path on storage that lasts" >&2
  exit 2
fi
shift

export RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
python=${POWERSAMPLE_PYTHON:-$root/.venv/bin/python}
ray=("$python" -m ray.scripts.scripts)
id=powersample-$(date +%Y%m%d-%H%M%S)-$$ # an id that was used before is refused

# The run's variables but for those that name a place on this machine.
runtime_env=$(env | "$python" -c '
import json, sys
lines = [line.rstrip("\n").partition("=") for line in sys.stdin]
mine = {name: value for name, _, value in lines if name.startswith("POWERSAMPLE_")}
mine = {name: value for name, value in mine.items() if name not in ("POWERSAMPLE_PYTHON", "POWERSAMPLE_RUN_DIR")}
print(json.dumps({
    "env_vars": {**mine, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
    "excludes": [".git/", ".venv/", "runs/"],
}))')

command=("$python" -m orchestrator run --run-dir "$run_dir" "$@")
for ((attempt = 1; ; attempt++)); do # right after the head has started it has no agent for a while
  if "${ray[@]}" job submit --no-wait --submission-id "$id" --working-dir "$root" \
    --runtime-env-json "$runtime_env" -- "${command[@]}"; then
    break
  fi
  ((attempt < 5)) || exit 1
  sleep 3
done
echo "ray_job: stop it by  ${ray[*]} job stop $id" >&2
exec "${ray[@]}" job logs --follow "$id"
