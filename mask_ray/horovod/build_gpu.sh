#!/usr/bin/env bash
# Build Horovod with NCCL, as a wheel in dist/, and say what the wheel can do: `make horovod-gpu`.
#
# The project's .venv and uv's cache of built wheels stay as they are. The build has an environment
# of its own, with the locked TensorFlow, and pip builds, keeping nothing: uv would file the wheel
# under the settings of pyproject.toml, where the ordinary build belongs.
#
# CUDA_HOME: the CUDA toolkit; by default that of nvcc on the PATH, or /usr/local/cuda.
# NCCL_HOME: a folder with include/nccl.h and lib/libnccl.so; by default the locked NCCL's wheel.
# HOROVOD_BUILD_CUDA_CC_LIST: compute capabilities, such as 80,90; by default those below that this
#   nvcc knows.
# UV: the uv to use.
#
# With --check it ends after looking for what it cannot install itself.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
  echo "error: $*" >&2
  exit 1
}

cuda=${CUDA_HOME:-}
# nvcc is asked for its folder, because on the PATH it may be a link or a wrapper.
[ -n "$cuda" ] || cuda=$(nvcc --dryrun x.cu 2>&1 | sed -n 's/^#\$ TOP=//p') || true
cuda=$(realpath -m "${cuda:-/usr/local/cuda}")
[ -x "$cuda/bin/nvcc" ] && [ -e "$cuda/include/cuda_runtime.h" ] ||
  fail "no CUDA toolkit (bin/nvcc, include/cuda_runtime.h) in $cuda; install one or set CUDA_HOME"
[ -z "${NCCL_HOME:-}" ] || [ -e "$NCCL_HOME/include/nccl.h" ] ||
  fail "NCCL_HOME must have include/nccl.h and lib/libnccl.so; got $NCCL_HOME"
[ "${1:-}" != --check ] || exit 0

known=$("$cuda/bin/nvcc" --list-gpu-code | sed 's/^sm_//' | paste -sd,)
capabilities=${HOROVOD_BUILD_CUDA_CC_LIST:-}
if [ -z "$capabilities" ]; then
  # V100, T4, A100, A10, L4, H100. Newer GPUs compile the code of the last for themselves.
  for cc in 70 75 80 86 89 90; do
    [[ ",$known," != *",$cc,"* ]] || capabilities+=${capabilities:+,}$cc
  done
fi
for cc in ${capabilities//,/ }; do
  [[ ",$known," == *",$cc,"* ]] ||
    fail "HOROVOD_BUILD_CUDA_CC_LIST must be some of $known, known to nvcc; got $capabilities"
done
version=$("$cuda/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
echo "building Horovod with CUDA $version for compute capabilities $capabilities, in some minutes"

work=$PWD/.tools/horovod-gpu
rm -rf "$work"
mkdir -p "$work" dist
# Horovod needs an older setuptools than the project locks.
"$UV" export --quiet --locked --no-dev --extra gpu --no-emit-project --no-emit-package setuptools \
  --output-file "$work/locked.txt"
"$UV" venv --quiet --python "$("$UV" python find)" "$work/venv"
export PATH="$work/venv/bin:$PATH"

# What builds Horovod stands in pyproject.toml, once.
python - "$work/needs.txt" >"$work/variables" <<'END'
import shlex, sys, tomllib
from pathlib import Path

uv = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["uv"]
needs = uv["extra-build-dependencies"]["horovod"]
Path(sys.argv[1]).write_text(
    "".join(f"{need if isinstance(need, str) else need['requirement']}\n" for need in needs)
)
for name, value in uv["extra-build-variables"]["horovod"].items():
    print(f"export {name}={shlex.quote(value)}")
END
. "$work/variables"
install=("$UV" pip install --quiet --python "$work/venv")
"${install[@]}" --constraint "$work/locked.txt" --requirement "$work/needs.txt" pip

if [ -n "${NCCL_HOME:-}" ]; then
  nccl=$(realpath "$NCCL_HOME")
  export LD_LIBRARY_PATH="$nccl/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
else
  "${install[@]}" --constraint "$work/locked.txt" nvidia-nccl-cu12
  nccl=$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/nvidia/nccl
  # NCCL's own wheel lacks the name that the linker looks for.
  ln -sf libnccl.so.2 "$nccl/lib/libnccl.so"
fi

export HOROVOD_GPU_OPERATIONS=NCCL
export HOROVOD_CUDA_HOME="$cuda"
export HOROVOD_NCCL_HOME="$nccl"
export HOROVOD_BUILD_CUDA_CC_LIST="$capabilities"
# At run time NCCL is found where `uv sync --extra gpu` puts it, seen from horovod/tensorflow/. A
# library in LIBRARY_PATH counts as the system's, so that this folder's path stays out of the wheel.
export LDFLAGS="${LDFLAGS:-} -Wl,-rpath,\$ORIGIN/../../nvidia/nccl/lib"
export LIBRARY_PATH="$nccl/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
# The flags of the make that called this would have Horovod compile one file at a time.
unset MAKEFLAGS
sed -n '/^horovod==/,/[^\\]$/p' "$work/locked.txt" >"$work/horovod.txt"
python -m pip --verbose wheel --no-cache-dir --no-deps --no-build-isolation --no-binary horovod \
  --require-hashes --requirement "$work/horovod.txt" --wheel-dir "$work" \
  >"$work/build.log" 2>&1 || {
  grep -E -m 10 'error: |CMake Error|Could NOT|ERROR: ' "$work/build.log" >&2 || true
  fail "Horovod did not build; the whole log is $work/build.log"
}
wheel=dist/$(basename "$work"/horovod-*.whl)
mv "$work"/horovod-*.whl "$wheel"

# uv's settings in pyproject.toml are about the ordinary build, and uv refuses the wheel for them.
"${install[@]}" --no-config --no-deps "$wheel"
cat >"$work/report.py" <<'END'
import sys

import horovod.tensorflow as hvd

built = {name: bool(getattr(hvd, f"{name}_built")()) for name in ("nccl", "cuda", "gloo")}
print(f"{sys.argv[1]}: " + ", ".join(f"{name} built: {value}" for name, value in built.items()))
if not all(built.values()):
    sys.exit("the wheel lacks a part")
END
TF_CPP_MIN_LOG_LEVEL=3 python "$work/report.py" "$wheel" 2>"$work/report.log" ||
  fail "$wheel does not work: $(tail -n 1 "$work/report.log")"
rm -rf "$work"

cat <<END
install it on nodes with GPUs, after \`uv sync --locked --extra gpu\`, with
  uv pip install --no-config --no-deps --force-reinstall $wheel
\`uv sync\`, \`uv run\` and \`make setup\` put the ordinary build back; this does not:
  uv sync --locked --extra gpu --inexact --no-install-package horovod
END
