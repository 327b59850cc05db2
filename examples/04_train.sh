#!/usr/bin/env bash
# The command: four ranks train a small network with 1-bit gradients.
#
#   examples/04_train.sh [THINWIRE] [FOLDER]
#
# Last line: done: test accuracy 100.00 %, ... bytes a step (... times fewer than dense), ...
set -euo pipefail
thinwire=${1:-build/thinwire}
folder=${2:-runs/example-04}
rm -rf "$folder"
"$thinwire" train --ranks 4 --model mlp:hidden=256,256 --data synthetic --steps 100 \
  --batch-size 16 --lr 0.05 --momentum 0 --compressor sign --output "$folder"
