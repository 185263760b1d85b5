#!/usr/bin/env bash
# Submits a run to a running Ray, prints its log until it ends, and exits with 0 when it succeeded.
#
#   launch/ray_job.sh --output-dir /shared/runs/first experiment=shapes_smoke
#   RAY_API_SERVER_ADDRESS=http://head:8265 launch/ray_job.sh --attempts 3 --output-dir ... OVERRIDES
#
# The checkout that this file is in travels to the cluster, without what .gitignore names and without docs, tests and the
# like; what it needs has to be installed there. With --installed nothing travels and the cluster's own prdp runs.
# The token is Ray's: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/ray_job.sh [options] OVERRIDES of `prdp train`
  --output-dir DIR     the run's folder on the machine of the head, absolute; every attempt goes on in it (required)
  --address URL        of the head's dashboard; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265
  --attempts N         how often to submit a job that fails, all in all; default 1. Each goes on from the last checkpoint
  --gpus N             GPUs of the driver, which is the learner; default 0. Not together with cluster.learner_gpus
  --on LABEL=VALUE     run the driver on a node with this label of Ray's, for instance where the head has no GPU:
                       ray.io/accelerator-type=H100. Together with cluster.learner_gpus
  --installed          run the prdp that is installed on the cluster instead of this checkout
  --python PROGRAM     Python on the cluster; default python
TEXT
}

fail() {
    echo "ray_job.sh: $1" >&2
    exit 2
}

address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
output_dir=
attempts=1
gpus=0
label=
installed=false
python=python
overrides=()
while (($#)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --installed) installed=true ;;
    --address | --output-dir | --attempts | --gpus | --on | --python)
        (($# > 1)) || fail "$1 needs a value"
        case $1 in
        --address) address=$2 ;;
        --output-dir) output_dir=$2 ;;
        --attempts) attempts=$2 ;;
        --gpus) gpus=$2 ;;
        --on) label=$2 ;;
        --python) python=$2 ;;
        esac
        shift
        ;;
    -*) fail "unknown option $1; see --help" ;;
    *) overrides+=("$1") ;;
    esac
    shift
done
[[ $output_dir == /* ]] || fail "--output-dir='$output_dir': must be an absolute path, on a disk that outlives the job"
[[ $attempts =~ ^[1-9][0-9]*$ ]] || fail "--attempts=$attempts: must be a whole number from 1 on"
[[ $gpus =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--gpus=$gpus: must be a number"
word='[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?'
[[ -z $label || $label =~ ^$word=$word$ ]] || fail "--on=$label: must be a label and its value, such as pool=learner"
[[ -z $label || $gpus == 0 ]] || fail "--on and --gpus: a driver that has GPUs is where they are; leave one out"
command -v ray >/dev/null || fail "there is no ray on PATH; install prdp with its dashboard extra"

export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
export RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0}
# A job's environment is readable by everyone who can see the dashboard: no secret belongs into it.
environment='"env_vars": {"RAY_USAGE_STATS_ENABLED": "0"}'
excludes='"excludes": ["/.ci", "/benchmarks", "/docker", "/docs", "/launch", "/tests"]'
submit=(ray job submit --address "$address")
if $installed; then
    submit+=(--runtime-env-json "{$environment}")
else
    submit+=(--runtime-env-json "{$environment, $excludes}")
    submit+=(--working-dir "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)")
fi
[[ $gpus == 0 ]] || submit+=(--entrypoint-num-gpus "$gpus")
# Not `prdp`: with -m the checkout's code is found before what is installed.
train=("$python" -m prdp train cluster=ray cluster.address=auto checkpoint.resume=auto "output_dir=$output_dir")
if [[ -n $label ]]; then
    submit+=(--entrypoint-label-selector "{\"${label%%=*}\": \"${label#*=}\"}")
    # Ray hides all GPUs from a driver that it has placed and given none; prdp reserves the learner's by itself.
    train=(env -u CUDA_VISIBLE_DEVICES "${train[@]}")
fi
((${#overrides[@]} == 0)) || train+=("${overrides[@]}")

# Waits for the end of a job, also where the connection that its log comes by ends before: Ray's own submission then
# succeeds. Returns 0 when the job has succeeded, and 1 when it has not.
ended() {
    local said asked=0
    while true; do
        said=$(ray job status --address "$address" "$1" 2>&1) || true
        case $said in
        *"Job '$1' succeeded"*) return 0 ;;
        *"Job '$1' failed"* | *"does not exist"*) return 1 ;;
        *"Job '$1' was stopped"*)
            echo "ray_job.sh: job $1 was stopped" >&2
            exit 1
            ;;
        *"Status for job '$1'"*)
            asked=0
            echo "ray_job.sh: the log ended before the job; once more, from the beginning:" >&2
            ray job logs --follow --address "$address" "$1" || true
            ;;
        *)
            ((++asked < 5)) || fail "cannot ask $address for job $1, which may be at work: ${said##*$'\n'}"
            ;;
        esac
        sleep "${PRDP_POLL_SECONDS:-2}"
    done
}

trap 'echo "ray_job.sh: the job goes on; this was only its log" >&2; exit 130' INT
name=prdp-$(basename "$output_dir" | tr -c 'A-Za-z0-9_.\n-' _)-$(date +%Y%m%d-%H%M%S)-$$
for ((attempt = 1; attempt <= attempts; attempt++)); do
    id=$name-$attempt
    echo "ray_job.sh: job $id at $address, attempt $attempt of $attempts; end it: ray job stop --address $address $id" >&2
    "${submit[@]}" --submission-id "$id" -- "${train[@]}" || true
    if ended "$id"; then
        exit 0
    fi
    echo "ray_job.sh: job $id did not succeed" >&2
done
exit 1
