#!/usr/bin/env bash
# The main job, from an empty machine to a report:   bash speedrun_powersample.sh [options of `powersample run`]
#
#   1. set-up    an isolated environment in .venv, once (launch/setup.sh; needs Linux, Python 3.11-3.14, a package index)
#   2. run       problems by power sampling, one worker per GPU, or 2 on CPUs; Ctrl-C leaves a run that can go on
#   3. report    accuracy with its error, timings, memory: on the terminal and in the run directory
#
# With no GPU and nothing set, the embedded model answers the embedded problems four ways (greedy, T = 1, T = 1/alpha,
# power) in a few minutes. With GPUs: all of GSM8K on all of them, as configs/gsm8k_power.yaml says.
# Start it again and it goes on with what is still to be done; a complete run prints its report again.
#
# Variables (all optional; an unknown POWERSAMPLE_* is refused). Relative paths are relative to where you are.
#   POWERSAMPLE_MODEL        hub name or local folder of a causal language model   (Qwen/Qwen2.5-Math-1.5B)
#   POWERSAMPLE_DATA         JSONL file in GSM8K's format or hub name              (openai/gsm8k, split test)
#   POWERSAMPLE_LIMIT        only the first so many problems                       (all)
#   POWERSAMPLE_BATCH_SIZE   problems at once per GPU: slots, refilled as they fall free  (10)
#   POWERSAMPLE_USE_BATCHED  1, or 0 for one problem at a time                     (1)
#   POWERSAMPLE_NUM_GPUS     GPUs to use, 0 for CPUs                               (all present)
#   POWERSAMPLE_NUM_WORKERS  workers on a machine without GPUs                     (2)
#   POWERSAMPLE_RUN_DIR      where the run is kept                                 (runs/NAME-FINGERPRINT, runs/demo)
#   POWERSAMPLE_SEED         of every random draw                                  (0)
#   POWERSAMPLE_SAMPLER__ALPHA, POWERSAMPLE_SAMPLER__NUM_MOVES, POWERSAMPLE_TASK__MAX_NEW_TOKENS, ...
#                            every other setting; `powersample run --help` lists all with their defaults
# Read by this script alone:
#   POWERSAMPLE_PYTHON           interpreter that has all packages: used as it is, without set-up (offline machines)
#   POWERSAMPLE_RESTART_SECONDS  pause before a driver that died is started again  (10)
# Of others: RAY_ADDRESS (join that cluster), RAY_AUTH_MODE (token), HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, CUDA_VISIBLE_DEVICES.
#
# Exit codes: 0 complete · 2 refused, with one sentence · 3 complete, some problems failed · 130, 143 stopped by a signal.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! ${POWERSAMPLE_RESTART_SECONDS:-10} =~ ^[0-9]+([.][0-9]+)?$ ]]; then
  echo "POWERSAMPLE_RESTART_SECONDS=$POWERSAMPLE_RESTART_SECONDS is no number of seconds; set it to one such as 10, or unset it." >&2
  exit 2
fi

# A driver that has no handler yet dies of the signal without a word, with a code like that of one that told: so told here.
# shellcheck disable=SC2317  # called by the traps
stopped() {
  local name=SIGTERM
  [[ $1 == 143 ]] || name=SIGINT
  [[ -n ${fresh:-} ]] || echo "Stopped by $name; the same command goes on." >&2 # of a fresh run the driver tells where
  exit "$1"
}
trap 'stopped 143' TERM
trap 'stopped 130' INT

# --- 1. set-up ---------------------------------------------------------------------------------------------------------
bash "$root/launch/setup.sh" || exit
python=${POWERSAMPLE_PYTHON:-$root/.venv/bin/python}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
needs='import importlib.util as util, orchestrator.settings.merge
for name in ("torch", "transformers", "ray", "datasets", "tqdm"):
    if not util.find_spec(name): raise ModuleNotFoundError(f"No module named {name!r}")
print("fit")'
answer=$("$python" -P -c "$needs" 2>&1)
answer=${answer##*$'\n'}
if [[ $answer != fit ]]; then
  answer=${answer##*: }
  echo "The interpreter $python cannot import powersample (${answer:-it says nothing}); set POWERSAMPLE_PYTHON to one that has the" \
    "packages of constraints.txt, or unset it and remove $root/.venv to have an environment made." >&2
  exit 2
fi

# --- 2. run, and 3. report -----------------------------------------------------------------------------------------------
umask 077 # runs, Ray's token and its logs are for nobody else's eyes
# Where records appear: the run directory if it is named, else the folder that has all of them.
records_below=${POWERSAMPLE_RUN_DIR:-runs} fresh=${POWERSAMPLE_FRESH:-}
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --run-dir) j=$((i + 1)); records_below=${!j:-$records_below} ;;
    --run-dir=*) records_below=${!i#--run-dir=} ;;
    --fresh) fresh=1 ;;
    --no-fresh) fresh='' ;;
  esac
done
count_records() { find "$records_below" -name records.jsonl -exec cat {} + 2>/dev/null | wc -l; }

# A driver can vanish without a word (out of memory; Ray ends it when its own server is gone). Records are durable, so it
# is started again, as long as that adds records. Signals are passed on as SIGTERM: a background process ignores SIGINT
# until it has a handler. A trapped signal ends `wait` early, hence the count of signals.
driver='' asked='' signals=0 fruitless=0
# shellcheck disable=SC2317  # called by the traps
stop() {
  asked=$1 signals=$((signals + 1))
  [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null
}
trap 'stop 143' TERM
trap 'stop 130' INT
await() { # waits until process $1 has ended; its exit code is in $status
  local before
  while :; do
    before=$signals
    wait "$1" 2>/dev/null # bash's own line about a process that was killed
    status=$?
    [[ $signals == "$before" ]] && return
  done
}

records=$(count_records)
while [[ -z $asked ]]; do
  "$python" -P -m orchestrator run "$@" &
  driver=$!
  [[ -z $asked ]] || kill -TERM "$driver" 2>/dev/null # it came before there was a driver to tell
  await "$driver"
  driver=''
  case $status in 0 | 2 | 3) exit "$status" ;; esac
  [[ -z $asked ]] || break
  case $status in 130 | 143) exit "$status" ;; esac
  if [[ -n $fresh && ${fresh,,} != 0 && ${fresh,,} != false ]]; then # a second start would be another new run
    echo "The driver ended with code $status; go on without --fresh, and with --run-dir set to its directory." >&2
    exit "$status"
  fi
  now=$(count_records)
  if ((now > records)); then fruitless=0; else fruitless=$((fruitless + 1)); fi
  records=$now
  if ((fruitless >= 3)); then
    echo "The driver ended with code $status, $fruitless times without a new record: given up; what is done is kept." >&2
    exit "$status"
  fi
  pause=${POWERSAMPLE_RESTART_SECONDS:-10}
  echo "The driver ended with code $status; what is recorded is kept. Starting it again in $pause s (Ctrl-C: no)." >&2
  sleep "$pause" &
  driver=$!
  await "$driver"
  driver=''
done
stopped "$asked"
