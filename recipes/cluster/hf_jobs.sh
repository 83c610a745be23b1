#!/usr/bin/env bash
# Candidates over Hugging Face Jobs: every job makes its part of the shards on one GPU and writes them into a bucket.
#
#   bash recipes/cluster/hf_jobs.sh 16 your-name/your-bucket recipes/sicog/qwen3_vl_4b/generate.yaml [options]
#
# Dataset and model are Hub ids, HF_TOKEN is set. DRY_RUN=1 shows the jobs and starts none; more than that was not run.
# The committed checkout is copied to your private bucket `jobs-artifacts`. A failed job is tried once more. Killed or
# out of time: start the same command again, finished shards are skipped. They come home with
#   hf buckets sync hf://buckets/your-name/your-bucket/candidates runs/candidates
set -euo pipefail
num_shards=${1:?how many jobs} bucket=${2:?your-name/your-bucket} config=${3:?a YAML of recipes/generate.py}
options=(--config "$config" --output_dir /bucket/candidates "${@:4}")
: "${HF_TOKEN:?jobs read the dataset and the model with it}"
[[ -n ${DRY_RUN:-} ]] && mode=(--dry-run) || mode=(--quiet --detach)
code=$(mktemp -d)
trap 'rm -rf "$code"' EXIT
git archive HEAD | tar -x -C "$code"

job() { # flavor, then options of this job alone; prints the id of the job
    # shellcheck disable=SC2016 # the shell inside the job fills in "$@"
    hf jobs run "${mode[@]}" --flavor "$1" --timeout 6h --attempts 2 --secrets HF_TOKEN --volume "$code:/code" \
        --volume "hf://buckets/$bucket:/bucket" python:3.11 bash -c \
        'cp -r /code /work && cd /work && pip install -q -c constraints.txt . torchvision &&
            exec python recipes/generate.py "$@"' generate "${options[@]}" "${@:2}"
}

[[ -n ${DRY_RUN:-} ]] || hf buckets create "$bucket" --private --exist-ok
plan=$(job cpu-upgrade --plan_only) && echo "$plan"
[[ -n ${DRY_RUN:-} ]] || hf jobs wait "$plan" # the plan is made once, before anybody works on it
for ((index = 0; index < num_shards; index++)); do
    job "${FLAVOR:-a100-large}" --shard_index "$index" --num_shards "$num_shards"
done
