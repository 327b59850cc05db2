#!/usr/bin/env bash
# A run that is interrupted and resumed ends with the same bits as one that was not, residuals of the
# compression included.
#
#   examples/05_resume.sh [THINWIRE] [FOLDER]
#
# Last line: resumed run and uninterrupted run end with the same parameters
set -euo pipefail
thinwire=${1:-build/thinwire}
folder=${2:-runs/example-05}
rm -rf "$folder"
job=(train --ranks 2 --model mlp --data synthetic --batch-size 16 --lr 0.05 --momentum 0
     --compressor sign --report-every 20)
hash_of() { grep -o '"parameters_hash":"[0-9a-f]*"' "$1/metrics.jsonl" | tail -n 1; }

"$thinwire" "${job[@]}" --steps 60 --output "$folder/whole"
"$thinwire" "${job[@]}" --steps 30 --output "$folder/parts"                # stops half way
"$thinwire" "${job[@]}" --steps 60 --output "$folder/parts" --resume auto  # goes on
[[ $(hash_of "$folder/whole") == "$(hash_of "$folder/parts")" ]]
echo "resumed run and uninterrupted run end with the same parameters"
