#!/usr/bin/env bash
# Is our code formatted? With --fix: formats it.
set -euo pipefail
cd "$(dirname "$0")/.."
how=(--dry-run --Werror)
[[ ${1:-} == --fix ]] && how=(-i)
find collectives optimizers runtime launch thinwire examples tests \
  \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0 |
  xargs -0 "${CLANG_FORMAT:-clang-format}" "${how[@]}"
