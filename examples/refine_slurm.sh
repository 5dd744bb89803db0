#!/bin/bash
# A data set through the dense CRF on sixteen machines, as a Slurm array:
#
#     sbatch examples/refine_slurm.sh IMAGES SCORES OUT [OPTIONS OF deeplab-fast crf]
#
# Each task takes the images whose names belong to its number, and starts as many processes as it has processors. A task
# that is requeued, or that you start again (sbatch --array=3), goes on with what it had not done.
#SBATCH --job-name=refine
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=refine-%A_%a.log

set -euo pipefail
images=${1:?IMAGES is missing} scores=${2:?SCORES is missing} out=${3:?OUT is missing}

# An array of other tasks than all sixteen, as of --array=3, would be shared out anew: name the part.
exec srun deeplab-fast crf "$images" "$scores" -o "$out" --shard "$((SLURM_ARRAY_TASK_ID + 1))/16" "${@:4}"
