#!/usr/bin/env bash
# All that needs a GPU, in one run of at most ten minutes: the tests marked gpu, ResNet-20 by the paper's recipe, and
# every measure of the benchmark:  experiments/gpu.sh [DIRECTORY] [OVERRIDES of src.train]
# Writes into DIRECTORY (default: gpu). PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu} overrides=("${@:2}") python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
"$python" -m pytest -m gpu tests/training/test_cuda_graph.py
"$python" -m src.train model=resnet20 data=cifar10 output_dir="$out/runs" "${overrides[@]}"
"$python" -m src.report "$out/runs" -o "$out"
"$python" -m src.benchmark step overhead data memory profile \
    --nets resnet20 resnet56 --repeats 1 -o "$out/speed.csv"
