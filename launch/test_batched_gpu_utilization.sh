#!/usr/bin/env bash
# What batching brings on this machine, in minutes:   bash launch/test_batched_gpu_utilization.sh [options of run]
#
# The same 80 problems with 2 moves twice, batched and one at a time per worker (POWERSAMPLE_USE_BATCHED=0), then memory
# and utilisation of every GPU, problems in flight, both times and their ratio. Without a GPU the embedded model answers,
# and the memory of its processes is shown.
#
# Variables: those of speedrun_powersample.sh, such as POWERSAMPLE_MODEL, POWERSAMPLE_BATCH_SIZE, POWERSAMPLE_NUM_GPUS and
# POWERSAMPLE_PYTHON. POWERSAMPLE_INLINE=1 takes one worker without Ray. POWERSAMPLE_RUN_DIR says where the two runs are
# kept (runs/utilisation-TIME), which has to be new: times are measured, and nothing is gone on with.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

bash "$root/launch/setup.sh"
python=${POWERSAMPLE_PYTHON:-$root/.venv/bin/python}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
umask 077 # runs are for nobody else's eyes

place=${POWERSAMPLE_RUN_DIR:-runs/utilisation-$(date +%Y%m%d-%H%M%S)}
if [[ -e $place ]]; then
  echo "There is $place already, and a time is measured from the start; set POWERSAMPLE_RUN_DIR to a new directory." >&2
  exit 2
fi
if [[ ${POWERSAMPLE_NUM_GPUS:-} == 0 ]]; then gpus=0; else
  gpus=$("$python" -P -c 'from orchestrator.machine.gpus import visible_gpus; print(len(visible_gpus()))')
fi
if [[ $gpus == 0 && -z ${POWERSAMPLE_MODEL:-}${POWERSAMPLE_DATA:-} ]]; then
  export POWERSAMPLE_MODEL=demo POWERSAMPLE_DATA=demo
fi

stopped() { # what run says of going on is not true of a time
  if (($1 > 128)); then echo "This test measures from the start; begin it again with a new POWERSAMPLE_RUN_DIR." >&2; fi
  exit "$1"
}

for batched in 1 0; do
  echo "Batched: $batched" >&2
  POWERSAMPLE_USE_BATCHED=$batched "$python" -P -m orchestrator run --limit 80 --sampler.num-moves 2 "$@" \
    --run-dir "$place/batched=$batched" >/dev/null || { code=$?; [[ $code == 3 ]] || stopped "$code"; } # 3: some failed
done
"$python" -P "$root/launch/utilisation.py" "$place/batched=1" "$place/batched=0"
