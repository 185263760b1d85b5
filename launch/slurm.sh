#!/usr/bin/env bash
# One run on the nodes of a Slurm allocation: a Ray head on the first, workers on the others, the learner beside the head.
#
#   sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sh /shared/runs/first experiment=... cluster.samplers=7
#
# The first argument is the run's folder, on a disk that all nodes see; the others are overrides of `prdp train`. The
# environment that prdp is installed in has to be active where sbatch is called, and at the same path on every node.
# The job is ended five minutes early, or when it is pre-empted, by a SIGTERM on which the run saves; it is put back into
# the queue and goes on from its newest checkpoint.
#SBATCH --job-name=prdp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if (($# == 0)) || [[ $1 != /* ]]; then
    echo "usage: sbatch [options] launch/slurm.sh RUN_FOLDER [OVERRIDES]; RUN_FOLDER is absolute, on a shared disk" >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder"

# Ray's token: known to this job only, in a file that only its owner can read. Its path goes to the nodes, not the token.
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/.ray-token-$SLURM_JOB_ID"
unset RAY_AUTH_TOKEN
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
export RAY_USAGE_STATS_ENABLED=0

steps=()
learner=
preempted=false
# shellcheck disable=SC2329 # a trap calls it
clean_up() {
    rm -f "$RAY_AUTH_TOKEN_PATH"
    ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
}
# shellcheck disable=SC2329 # a trap calls it
on_term() {
    preempted=true
    echo "slurm.sh: SIGTERM; the run saves and the job is queued again"
    [[ -z $learner ]] || kill -TERM "$learner" 2>/dev/null || true
}
trap clean_up EXIT
trap on_term TERM

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=${PRDP_HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname -I)}
ip=${ip%% *}
# Several jobs may share a node, so each has a port of its own.
export RAY_ADDRESS="$ip:$((20000 + SLURM_JOB_ID % 10000))"

# A run takes what the nodes that it finds cannot hold for a mistake, so all have to be there first.
wait_for_nodes() {
    python -P - "$1" <<'PYTHON'
import sys, time, ray
deadline, answer = time.monotonic() + 600, ""
while time.monotonic() < deadline:
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        there = sum(node["Alive"] for node in ray.nodes())
        answer = f"{there} of {sys.argv[1]} Ray nodes are there"
        if there >= int(sys.argv[1]):
            sys.exit(print(f"slurm.sh: {answer}"))
    except (ConnectionError, RuntimeError, ValueError) as error:
        answer = f"no Ray answers: {error}"
    finally:
        ray.shutdown()
    time.sleep(2)
sys.exit(f"slurm.sh: after 10 minutes {answer}")
PYTHON
}

size=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}")
[[ -z ${SLURM_GPUS_ON_NODE:-} ]] || size+=(--num-gpus="$SLURM_GPUS_ON_NODE")
start_node() {
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" ray start --block "${@:2}" "${size[@]}" &
    steps+=($!)
}
start_node "${nodes[0]}" --head --node-ip-address="$ip" --port="${RAY_ADDRESS##*:}" --include-dashboard=false
wait_for_nodes 1
for node in "${nodes[@]:1}"; do
    start_node "$node" --address="$RAY_ADDRESS"
done
wait_for_nodes "${#nodes[@]}"

prdp train cluster=ray cluster.address="$RAY_ADDRESS" checkpoint.resume=auto output_dir="$folder" "$@" &
learner=$!
if $preempted; then
    kill -TERM "$learner" 2>/dev/null || true
fi
# A trapped signal ends `wait` while the learner is still saving.
while true; do
    status=0
    wait "$learner" || status=$?
    kill -0 "$learner" 2>/dev/null || break
done
if $preempted; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
