#!/bin/sh
# Everything that needs a GPU, in one command and under ten minutes: what fails first is known within a minute.
#
#     bench/gpu.sh                      # results in bench/results
#     OUT=/some/folder bench/gpu.sh
#     bench/gpu.sh --rehearse           # without a GPU: every stage runs as far as it can, or says why it is skipped
#
# The stages, and the seconds that each is meant to take on 16 cores (it is stopped after about twice as many):
#
#     machine      5   GPU, torch, Triton, Python
#     build       60   in the background, for this chip only; into a folder of its own
#     quick       20   every op and module once, beside the CPU. With libraries that were built elsewhere and brought along
#                      (deeplab_fast/lib*.so: they fit every Python, and torch from 2.10) at once, else after the build
#     first       30   the tests that need a GPU, until some have failed: the verdict, a minute after the start
#     crf_tests   40   the dense CRF's tests, all of them
#     tests       60   all others that need a GPU
#     crf_times   50   the CRF beside its peers
#     times       60   convolutions and upsampling beside theirs
#     model        5   the times beside those of bench.gpu_model: where the kernels deviate from what they should take
#     memcheck,   90   some tests under compute-sanitizer, three runs
#     racecheck
#
# Needs a Python with torch for CUDA, Triton, pytest, hypothesis, and for the times rich, typer, psutil, Pillow and
# scikit-image; pydensecrf is timed if it is there. No network: nothing is downloaded. PYTHON names it (python3). A
# stage that fails is written down and the others still run; the exit code is 0 if none has failed. SECONDS_LEFT (570)
# is the time for all: what would begin after it is skipped.

set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
OUT=${OUT:-bench/results}
BEGIN=$(date +%s)
END=$((BEGIN + ${SECONDS_LEFT:-570}))
REHEARSE=""
[ "${1:-}" = --rehearse ] && REHEARSE=yes
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
# -P below, and this for the processes of pytest-xdist: the package is the installed one, not the folder beside us,
# which comes after it, for bench/ and tests/.
export CUDA_HOME PYTHONSAFEPATH=1 PATH="$CUDA_HOME/bin:$PATH"
PACKAGE="$STAGE/install"

GPU='import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"), "{}{}".format(*torch.cuda.get_device_capability()))'
if [ -n "$REHEARSE" ]; then
  CHIP=rehearsal CAPABILITY=90
else
  FOUND=$("$PYTHON" -c "$GPU") || {
    echo "gpu.sh: $PYTHON has no torch that finds a GPU; --rehearse needs none" >&2
    exit 2
  }
  CHIP=${FOUND% *} CAPABILITY=${FOUND##* }
fi
NAME="$OUT/gpu_$(date +%F)_$CHIP"
SUMMARY="${NAME}_summary.txt"
: >"$SUMMARY"
FAILED=0

say() { echo "$*" | tee -a "$SUMMARY"; }
skip() { say "$1: skipped, $2"; }

# stage NAME SECONDS COMMAND...: runs it with a time limit, its output on screen and in a file.
stage() {
  title=$1 limit=$2
  shift 2
  begin=$(date +%s)
  [ "$limit" -lt $((END - begin)) ] || limit=$((END - begin))
  [ "$limit" -gt 2 ] || { skip "$title" "no time is left"; return 1; }
  { PYTHONPATH="$PACKAGE:$PWD" timeout --kill-after=10 "$limit" "$@" 2>&1; echo $? >"$STAGE/code"; } |
    tee "${NAME}_$title.txt"
  code=$(cat "$STAGE/code")
  case $code in
    0) result=passed ;;
    124 | 137) result="failed: over its $limit seconds" ;;
    *) result="failed: exit code $code" ;;
  esac
  [ "$code" = 0 ] || FAILED=1
  failures=$(sed -n 's/^\(FAILED [^ ]*\).*/  \1/p' "${NAME}_$title.txt" | sort -u | head -20)
  say "$title: $result, $(($(date +%s) - begin)) s, $(($(date +%s) - BEGIN)) s after the start"
  [ -z "$failures" ] || say "$failures"
  [ "$code" = 0 ]
}

# gpu_tests NAME SECONDS ARGUMENTS...: tests that need a GPU; without one, whether they can be collected.
gpu_tests() {
  title=$1 limit=$2
  shift 2
  if [ -n "$REHEARSE" ]; then
    stage "$title" 120 "$PYTHON" -P -m pytest "$@" -m cuda --collect-only -q -p no:cacheprovider
  else
    # shellcheck disable=SC2086
    stage "$title" "$limit" "$PYTHON" -P -m pytest "$@" -m cuda --tb=short -p no:cacheprovider $WORKERS
  fi
}

# copy FOLDER: the package as it lies here, with what is compiled if that was brought along.
copy() {
  mkdir -p "$1"
  cp -r deeplab_fast "$1/"
  cp -r kernels "$1/deeplab_fast/"
}

stage machine 20 "$PYTHON" -c '
import platform, torch, triton
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(gpu, "torch", torch.__version__, "Triton", triton.__version__, "Python", platform.python_version())'
tail -n 1 "${NAME}_machine.txt" >>"$SUMMARY"

WORKERS=""
"$PYTHON" -c 'import xdist' 2>/dev/null && WORKERS="-n 8"
# Compiling the Triton kernels takes most of the time, and is kept for the stages after.
export TRITON_CACHE_DIR="$STAGE/triton"

[ "$CAPABILITY" -ge 90 ] && ARCHITECTURE=90a-real || ARCHITECTURE=80-real
export CMAKE_ARGS="${CMAKE_ARGS:-} -DDEEPLAB_FAST_CUDA_ARCHITECTURES=$ARCHITECTURE"
"$PYTHON" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$STAGE/built" . \
  >"$STAGE/build.txt" 2>&1 &
BUILD=$!
# Waits for the build, and says what became of it.
finish_build() {
  stage build 150 sh -c "tail --pid=$BUILD -n +1 -f '$STAGE/build.txt'; test -d '$STAGE/built/deeplab_fast'" || {
    kill "$BUILD" 2>/dev/null
    say "  the stages after it have what was brought along, or the Triton kernels alone"
  }
  [ ! -d "$STAGE/built/deeplab_fast" ] || PACKAGE="$STAGE/built"
}

copy "$STAGE/install"
if [ -e deeplab_fast/libdeeplab_fast_cuda.so ]; then
  BUILT=""
else
  finish_build
  BUILT=yes
fi
gpu_tests quick 60 tests/build/test_gpu_quick.py -v
# Only files that have such tests are imported: the others may need packages that are not there.
WITH_TESTS=$(grep -rl "mark.cuda" tests --include="test_*.py" | grep -v test_gpu_quick)
# shellcheck disable=SC2086
gpu_tests first 45 $WITH_TESTS --maxfail=10 -q
say "first verdict: $(grep -c ': failed' "$SUMMARY") stages have failed, $(($(date +%s) - BEGIN)) s after the start"
[ -n "$BUILT" ] || finish_build

gpu_tests crf_tests 80 tests/crf/test_dense_crf_gpu.py -v
# shellcheck disable=SC2046
gpu_tests tests 110 $(echo "$WITH_TESTS" | grep -v test_dense_crf_gpu) -v

STEM=$(basename "$NAME")
MEASURE="--seconds 1"
[ -z "$REHEARSE" ] || MEASURE=--dry-run
# shellcheck disable=SC2086
stage crf_times 90 "$PYTHON" -P -m bench --gpu $MEASURE --out "$OUT" --save "${STEM}_crf" \
  --op dense_crf --op pairwise_energy --op crf_as_rnn --op permutohedral_filter
[ -n "$REHEARSE" ] || MEASURE="--seconds 0.3 --compile-until 30"
# shellcheck disable=SC2086
stage times 90 "$PYTHON" -P -m bench --gpu $MEASURE --out "$OUT" --save "$STEM" \
  --op aspp_sum --op atrous_conv2d --op upsample_argmax --op upsample_softmax
RESULTS=""
for file in "$OUT/${STEM}_crf.json" "$OUT/$STEM.json"; do
  [ ! -e "$file" ] || RESULTS="$RESULTS --results $file"
done
# shellcheck disable=SC2086
stage model 30 "$PYTHON" -P -m bench.gpu_model $RESULTS

# torch's own pool of memory would hide an access beyond the end of a tensor.
SANITIZER=$(command -v compute-sanitizer || echo "$CUDA_HOME/bin/compute-sanitizer")
if [ -n "$REHEARSE" ]; then
  skip "memcheck and racecheck" "there is no GPU"
elif [ ! -x "$SANITIZER" ]; then
  skip "memcheck and racecheck" "there is no compute-sanitizer"
else
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck; do
    stage "crf_$tool" 45 "$SANITIZER" --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -P -m pytest tests/crf/test_dense_crf_gpu.py -q -p no:cacheprovider \
      -k "(test_gradients or test_filter) and (image or mixed_kernels or labels_91 or one_pixel or float16) and not True"
  done
  stage memcheck 45 "$SANITIZER" --tool memcheck --error-exitcode 1 \
    "$PYTHON" -P -m pytest tests/kernels/test_kernels_gpu.py -m cuda -q -p no:cacheprovider \
    -k "(plain or channels_last) and tf32 and not float and not gradients_alone"
fi

cat "$SUMMARY"
exit $FAILED
