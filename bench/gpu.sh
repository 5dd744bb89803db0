#!/bin/sh
# Everything that needs a GPU, in one command and under eight minutes: installs the package into a folder of its own,
# runs the tests marked "cuda", some of them under compute-sanitizer, and times the cases of `python -m bench --gpu`.
#
#     bench/gpu.sh                      # results in bench/results
#     OUT=/some/folder bench/gpu.sh
#
# Needs a Python with torch for CUDA, Triton, pytest, hypothesis, and for the times rich, typer, psutil, Pillow and
# scikit-image; pydensecrf is timed if it is there. No network: nothing is downloaded. PYTHON names it (python3). A
# stage that fails is written down and the others still run; the exit code is 0 if all passed.

set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
OUT=${OUT:-bench/results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
# -P below, and this for the processes of pytest-xdist: the package is the installed one, not the folder beside us,
# which comes after it, for bench/ and tests/.
export CUDA_HOME PYTHONPATH="$STAGE/install:$PWD" PYTHONSAFEPATH=1 PATH="$CUDA_HOME/bin:$PATH"

CHIP=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') || {
  echo "gpu.sh: $PYTHON has no torch that finds a GPU" >&2
  exit 2
}
NAME="$OUT/gpu_$(date +%F)_$CHIP"
SUMMARY="${NAME}_summary.txt"
: >"$SUMMARY"
FAILED=0

# stage NAME SECONDS COMMAND...: runs it with a time limit, its output on screen and in a file.
stage() {
  title=$1 limit=$2
  shift 2
  begin=$(date +%s)
  { timeout --kill-after=10 "$limit" "$@" 2>&1; echo $? >"$STAGE/code"; } | tee "${NAME}_$title.txt"
  code=$(cat "$STAGE/code")
  case $code in
    0) result=passed ;;
    124 | 137) result="failed: over its $limit seconds" ;;
    *) result="failed: exit code $code" ;;
  esac
  [ "$code" = 0 ] || FAILED=1
  echo "$title: $result, $(($(date +%s) - begin)) s" | tee -a "$SUMMARY"
}

"$PYTHON" - >>"$SUMMARY" <<'END'
import platform, torch, triton
print(torch.cuda.get_device_name(), "torch", torch.__version__, "Triton", triton.__version__, "Python", platform.python_version())
END

stage install 100 "$PYTHON" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$STAGE/install" .
if [ ! -d "$STAGE/install/deeplab_fast" ]; then  # without what is compiled, the Triton kernels can still be run
  mkdir -p "$STAGE/install"
  cp -r deeplab_fast "$STAGE/install/"
  cp -r kernels "$STAGE/install/deeplab_fast/"
fi

WORKERS=""
"$PYTHON" -c 'import xdist' 2>/dev/null && WORKERS="-n 8"
# Compiling the kernels takes most of the time, and is kept for the stages after.
export TRITON_CACHE_DIR="$STAGE/triton"
# Only files that have such tests are imported: the others may need packages that are not there.
# shellcheck disable=SC2086
stage crf_tests 70 "$PYTHON" -P -m pytest tests/crf/test_dense_crf_gpu.py -v --tb=short -p no:cacheprovider $WORKERS
# shellcheck disable=SC2046,SC2086
stage tests 110 "$PYTHON" -P -m pytest $(grep -rl "mark.cuda" tests --include="test_*.py" | grep -v test_dense_crf_gpu) -m cuda -v --tb=short -p no:cacheprovider $WORKERS

# torch's own pool of memory would hide an access beyond the end of a tensor.
SANITIZER=$(command -v compute-sanitizer || echo "$CUDA_HOME/bin/compute-sanitizer")
if [ -x "$SANITIZER" ]; then
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "crf_$tool" 35 "$SANITIZER" --tool "$tool" --error-exitcode 1 \
      "$PYTHON" -P -m pytest tests/crf/test_dense_crf_gpu.py -q -p no:cacheprovider \
      -k "(test_gradients or test_filter) and (image or mixed_kernels or labels_91 or one_pixel or float16) and not True"
  done
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage memcheck 40 "$SANITIZER" --tool memcheck --error-exitcode 1 \
    "$PYTHON" -P -m pytest tests/kernels/test_kernels_gpu.py -m cuda -q -p no:cacheprovider \
    -k "(plain or channels_last) and tf32 and not float and not gradients_alone"
else
  echo "memcheck: skipped, there is no compute-sanitizer" | tee -a "$SUMMARY"
fi

STEM=$(basename "$NAME")
stage crf_times 50 "$PYTHON" -P -m bench --gpu --seconds 1 --out "$OUT" --save "${STEM}_crf" \
  --op dense_crf --op pairwise_energy --op crf_as_rnn --op permutohedral_filter
stage times 60 "$PYTHON" -P -m bench --gpu --seconds 0.3 --out "$OUT" --save "$STEM" --compile-until 30 \
  --op aspp_sum --op atrous_conv2d --op upsample_argmax --op upsample_softmax

cat "$SUMMARY"
exit $FAILED
