#!/usr/bin/env bash
# What a GPU is wanted for, in calls of at most ten minutes; README.md here explains them.
#   experiments/gpu/call.sh CALL OUT [OVERRIDE...]
# Writes logs, exit statuses, measurements and a tar file of the runs into OUT. A run that its time
# limit ends is saved, and the same call resumes it. Runs stay in $RUNS (gpu-runs) between calls.
set -u
cd "$(dirname "$0")/../.."
call=${1:?1, 2, 3, 4 or 5} out=${2:?a directory for what comes out} overrides=("${@:3}")
mkdir -p "$out" && out=$(cd "$out" && pwd)
python=${PYTHON:-.venv/bin/python} runs=${RUNS:-gpu-runs}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
SECONDS=0 limit=${LIMIT:-570}

# attempt NAME SECONDS COMMAND...: within its limit and that of the call; a failure stops nothing.
attempt() {
  local name=$1 left=$((limit - SECONDS)) status
  local seconds=$(($2 < left ? $2 : left))
  ((seconds > 0)) || { echo "$name not tried" >> "$out/statuses.txt"; return; }
  timeout --kill-after=10 "$seconds" "${@:3}" > >(tee -a "$out/$name.log") 2>&1
  status=$?
  echo "$name $status" >> "$out/statuses.txt"
}

# train NAME SECONDS OVERRIDE...: one run on CIFAR-10 with all 50,000 training images.
train() {
  attempt "$1" "$2" "$python" -m src.train data=cifar10 data.download=false data.val_images=0 \
    "${@:3}" ${overrides[@]+"${overrides[@]}"}
}

case $call in
1) # what the machine does, and the tests that need a GPU
  attempt probe 200 "$python" experiments/gpu/probe.py
  attempt tests 300 "$python" -m pytest -m gpu -v --durations=0 tests/training
  nvidia-smi > "$out/nvidia-smi.log" 2>&1
  ;;
2) # the modes of the training step: 4,000 iterations of each, then the benchmark
  for mode in none cudagraph inductor inductor+cudagraph; do
    train "mode-$mode" 60 model=resnet20 recipe.iterations=4000 compile="$mode" \
      output_dir="$runs/modes/$mode"
  done
  for part in interrupted resumed; do # compare its checkpoint with that of mode-cudagraph
    seconds=$([ $part = interrupted ] && echo 15 || echo 60)
    train "$part" "$seconds" model=resnet20 recipe.iterations=4000 compile=cudagraph \
      output_dir="$runs/modes/resumed"
  done
  attempt step 240 "$python" -m src.benchmark step --nets resnet20 resnet56 resnet110 \
    --repeats 1 -o "$out/speed.csv"
  attempt measures 120 "$python" -m src.benchmark overhead data memory profile \
    --nets resnet20 --repeats 1 -o "$out/speed.csv"
  ;;
3) # the paper's recipe at its full length: plain and residual nets of 20 and 56 layers
  for net in resnet20 plain20 resnet56 plain56; do
    train "$net" 570 model="$net" output_dir="$runs"
  done
  ;;
4) # the other depths of Fig. 6
  for net in resnet32 plain32 resnet44 plain44 resnet110; do
    train "$net" 570 model="$net" output_dir="$runs"
  done
  ;;
5) # four more seeds, several runs on the GPU at once
  train seeds 570 -m model=resnet20,plain20,resnet56,plain56 seed=1,2,3,4 \
    sweep.jobs_per_device=3 sweep.mps="${MPS:-false}" output_dir="$runs"
  ;;
*) echo "there is no call $call: 1, 2, 3, 4 or 5" >&2 && exit 2 ;;
esac
wait # for the last lines of the logs
[ ! -d "$runs" ] || tar czf "$out/runs.tgz" "$runs"
cat "$out/statuses.txt"
