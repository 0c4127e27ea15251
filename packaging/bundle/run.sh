#!/usr/bin/env bash
# Tries this build of minisgld on a machine with an NVIDIA GPU. Needs neither Rust nor a network.
#
#   ./run.sh [unpack|quick|full] [--model DIR]... [--shapes DIR]
#
# unpack: only unpacks. quick: doctor, operations, whole models. full: also transformers as reference where Python has it,
# compute-sanitizer where it is installed, and the offline benchmark. --model is a folder with config.json (and
# weights, else they are random), --shapes a folder of such folders; they are benchmarked. Logs go to
# $OUT_DIR, by default results/ beside this file. The exit status is 0 only if nothing failed.
set -uo pipefail
start=$PWD
cd "$(dirname "$0")" || exit 2
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$start/$1" ;; esac }

# Once: what it unpacks stays.
if [ -f files.tar.xz ] && [ ! -x bin/minisgld ]; then
    tar -xJf files.tar.xz 2>/dev/null ||
        python3 -c 'import tarfile; tarfile.open("files.tar.xz").extractall()' ||
        { echo "files.tar.xz does not unpack: install xz-utils" && exit 2; }
fi

mode=quick
models=()
while [ $# -gt 0 ]; do
    case "$1" in
    quick | full) mode=$1 ;;
    unpack) exit 0 ;;
    --model) models+=("$(absolute "${2:?--model needs a folder}")") && shift ;;
    --shapes)
        MINISGL_SHAPES_DIR=$(absolute "${2:?--shapes needs a folder}") && export MINISGL_SHAPES_DIR
        for dir in "$MINISGL_SHAPES_DIR"/*/; do
            [ -f "$dir/config.json" ] && models+=("${dir%/}")
        done
        shift
        ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
    shift
done

out=${OUT_DIR:-$PWD/results}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"
# For the executables in tests/; one that exits with 77 was not run.
export OUT_DIR=$out MINISGL_MODE=$mode MINISGL_BIN_DIR=$PWD/bin
table=()
failed=0

# step NAME COMMAND...: runs it, shows the end of what it wrote, and notes how it went.
step() {
    local name=$1 log="$out/${1//[^A-Za-z0-9.-]/-}.log" began=$SECONDS status=0 word
    shift
    echo "==> $name"
    "$@" >"$log" 2>&1 || status=$?
    tail -n "${LINES_SHOWN:-12}" "$log"
    case $status in
    0) word=ok ;;
    77) word="not run" ;;
    *) word="FAILED ($status)" && failed=1 ;;
    esac
    table+=("$(printf '%-34s %-12s %5d s' "$name" "$word" $((SECONDS - began)))")
    return $status
}
skip() { table+=("$(printf '%-34s %-12s %s' "$1" "not run" "$2")"); }

summary() {
    printf '\n'
    printf '%s\n' "${table[@]}"
    [ $failed -eq 0 ] && echo "nothing failed" || echo "something FAILED; logs: $out"
    exit $failed
}

# Without a GPU the rest would prove nothing: no test may find none and be content.
export MINISGL_REQUIRE_GPU=${MINISGL_REQUIRE_GPU:-1}
LINES_SHOWN=30 step doctor bin/minisglctl doctor --socket "$scratch/none.sock" || summary

step operations tests/gpu
if [ "$mode" = full ] && [ -x tests/hf ]; then
    if python3 -c 'import torch, transformers' 2>/dev/null; then
        step "transformers' answers" python3 python/hf_reference.py "$scratch/hf" &&
            export MINISGL_HF_DIR=$scratch/hf
    else
        skip "transformers' answers" "python3 has no torch and transformers"
    fi
fi
for test in tests/*; do
    name=$(basename "$test")
    [ "$name" = gpu ] && continue
    [ "$name" = hf ] && [ -z "${MINISGL_HF_DIR:-}" ] && skip "$name" "needs MINISGL_HF_DIR" && continue
    # Rust's test programs share the one GPU: one test after the other.
    case "$name" in
    engine-ops) step "$name" "$test" ops::cuda --test-threads 1 ;;
    *.*) [ -x "$test" ] && step "$name" "$test" ;;
    *) step "$name" "$test" --test-threads 1 --nocapture ;;
    esac
done

if [ "$mode" = full ]; then
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            step "$tool over operations" \
                compute-sanitizer --tool "$tool" --error-exitcode 9 tests/gpu --small
        done
    else
        skip "memcheck, racecheck" "compute-sanitizer is not installed"
    fi
fi

[ ${#models[@]} -eq 0 ] && skip benchmarks "give --model or --shapes"
for model in ${models[@]+"${models[@]}"}; do
    weights=()
    ls "$model"/*.safetensors >/dev/null 2>&1 || weights=(--dummy-weights)
    name=$(basename "$model")
    step "latency $name" bin/minisgld bench latency --model "$model" ${weights[@]+"${weights[@]}"}
    [ "$mode" = full ] &&
        step "offline $name" bin/minisgld bench offline --model "$model" ${weights[@]+"${weights[@]}"}
done
summary
