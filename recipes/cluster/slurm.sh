#!/usr/bin/env bash
# Candidates over a Slurm array: every task makes its part of the shards on one GPU.
#
#   bash recipes/cluster/slurm.sh 16 recipes/sicog/qwen3_vl_4b/generate.yaml [options of recipes/generate.py]
#
# Start it in the checkout, on a file system that all nodes see, with the environment of the project active. Killed,
# preempted or out of time: start the same command again; finished shards are skipped, and a task that finds nothing to
# do ends at once. Another number of tasks is fine, for shards do not depend on it. What your cluster wants beyond this
# is set in Slurm's own variables, such as SBATCH_ACCOUNT and SBATCH_PARTITION. Not run on a real cluster.
#SBATCH --job-name=generate
#SBATCH --output=slurm-%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
num_shards=${1:?how many tasks} config=${2:?a YAML of recipes/generate.py}
generate=(recipes/generate.py --config "$config" "${@:3}")

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then # Slurm started this: one task of the array
    accelerate launch --config_file accelerate_configs/single_gpu.yaml "${generate[@]}" \
        --shard_index "$SLURM_ARRAY_TASK_ID" --num_shards "$num_shards"
else # a person started this: the plan is made once, then all tasks may start
    plan=$(sbatch --parsable --job-name=plan --wrap "$(printf '%q ' python "${generate[@]}" --plan_only)")
    sbatch --dependency="afterok:${plan%%;*}" --kill-on-invalid-dep=yes --array="0-$((num_shards - 1))" "$0" "$@"
fi
