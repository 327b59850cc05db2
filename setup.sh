#!/usr/bin/env bash
# Brings everything that a bare Debian 12 machine needs to build thinwire: Debian packages, and the
# pinned torch wheel in a virtual environment inside the build folder. Idempotent; seconds when
# nothing is missing. Where it may not install, it prints what is missing and the command.
#
#   ./setup.sh [BUILD_FOLDER]      default: build
set -euo pipefail
cd "$(dirname "$0")"
build=${1:-build}

packages=(
  g++ cmake ninja-build ccache clang-format python3 python3-venv ca-certificates
  libgtest-dev libgmock-dev libboost-program-options-dev nlohmann-json3-dev libxxhash-dev libsodium-dev zlib1g-dev libhwy-dev
  libopenmpi-dev openmpi-bin iproute2 dataset-fashion-mnist jargon-text
  shellcheck slurmctld slurmd slurm-client munge
)
wheels=(torch==2.11.0 safetensors==0.4.5 numpy==2.4.6 typing-extensions==4.15.0)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ $status == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]})); then
  command=(apt-get install -y --no-install-recommends "${missing[@]}")
  if [[ $(id -u) == 0 ]]; then
    run=()
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    run=(sudo)
  else
    echo "setup: these Debian packages are missing: ${missing[*]}" >&2
    echo "setup: run as root: apt-get update && ${command[*]}" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  "${run[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${run[@]}" "${command[@]}" >/dev/null
fi

# libtorch's CPU library needs CUDA's runtime and profiling libraries even where there is no GPU:
# from an installed toolkit, else from their own wheels.
toolkit=/usr/local/cuda
if ! compgen -G "$toolkit/lib64/libcudart.so.13*" >/dev/null ||
   { ! compgen -G "$toolkit/lib64/libcupti.so.13*" >/dev/null &&
     ! compgen -G "$toolkit/extras/CUPTI/lib64/libcupti.so.13*" >/dev/null; }; then
  wheels+=(nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
else
  # torchrun imports all of torch, GPU libraries included: those that no toolkit has. Without a
  # toolkit it would take two gigabytes more, and the test of torchrun is skipped.
  wheels+=(nvidia-cusparselt-cu13==0.8.0 nvidia-nvshmem-cu13==3.4.5 nvidia-cufile==1.15.1.6)
fi

stamp="$build/venv/.thinwire-setup"
if [[ $(cat "$stamp" 2>/dev/null) != "${wheels[*]}" ]]; then
  echo "setup: installing ${wheels[*]}"
  mkdir -p "$build"
  [[ -x $build/venv/bin/python3 ]] || python3 -m venv "$build/venv"
  "$build/venv/bin/python3" -m pip install --quiet --disable-pip-version-check --no-deps "${wheels[@]}"
  echo "${wheels[*]}" >"$stamp"
fi
