#!/bin/bash
# A training on <nodes> Slurm nodes with a Ray cluster of their own, which comes and goes with the job.
# `maskrcnn cluster render slurm` fills in the names in angle brackets. From a directory that all nodes see, in an
# environment that has maskrcnn-ray (Slurm hands it on):
#
#   sbatch FILE
#
# Before the time is up the job goes back into the queue and then continues at its last checkpoint, as it does where
# Slurm takes its nodes for another one. scancel ends it.
#SBATCH --job-name=<name>
#SBATCH --nodes=<nodes>
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=<cpus>
#SBATCH --gpus-per-node=<gpus>
#SBATCH --mem=<memory_gb>G
#SBATCH --time=<hours>:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
<options>
set -euo pipefail

command -v ray >/dev/null || { echo "error: ray is not on PATH; activate the environment, then sbatch" >&2; exit 2; }

verb="" interrupted="" requeue="" steps=() private=""
scratch=/tmp/ray-$SLURM_JOB_ID # of each node; short: it holds sockets, whose paths may have 107 characters
port=$((20000 + SLURM_JOB_ID % 1500 * 8)) # jobs that share a node have ports of their own
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

address_of() {
  getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }'
}

# On another node: a step of its own, which ends with this script.
start_ray() {
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist="$node" --export=ALL \
    ray start --block --disable-usage-stats --node-ip-address="$(address_of "$node")" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus=<gpus> --min-worker-port=0 --max-worker-port=0 "$@" &
  steps+=($!)
}

# USR1: Slurm's warning that the time is nearly up. TERM: scancel, or a job that goes first (Slurm requeues itself then).
# shellcheck disable=SC2329 # a trap calls it
interrupt() {
  interrupted=yes
  if [ -n "$verb" ]; then kill -TERM "$verb" 2>/dev/null || true; else exit 143; fi
}

# shellcheck disable=SC2329 # a trap calls it
finish() {
  local code=$?
  trap '' USR1 TERM INT
  trap - EXIT
  if [ ${#steps[@]} -gt 0 ]; then
    kill -TERM "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" || true
  fi
  rm -rf "$private" "$scratch"
  # The other nodes' too. After scancel Slurm starts nothing more: Ray's logs stay in their /tmp.
  srun --ntasks-per-node=1 --nodelist="$SLURM_JOB_NODELIST" rm -rf "$scratch" 2>/dev/null || true
  if [ -n "$requeue" ] && [ "$code" -ne 0 ]; then
    echo "the time is nearly up: back into the queue, to continue at the last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}

trap finish EXIT
trap 'requeue=yes; interrupt' USR1
trap interrupt TERM INT

# No job, node or driver gets in without this token, which nobody else can read.
private=$(mktemp -d "$PWD/.ray-$SLURM_JOB_ID-XXXXXX") # of mode 700
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$private/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
# Ray ends idle processes after a second, and a task that reads shards would start a Python of its own each time. When
# the script ends there is nothing left for a node to finish.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 RAY_idle_worker_killing_time_threshold_ms=600000 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 PYTHONUNBUFFERED=1

# Until our child $verb has ended, and with its exit code, whatever signals come meanwhile.
follow() {
  local code=0
  wait "$verb" || code=$?
  while [ -n "$interrupted" ]; do # what wait returned was the signal's number: the child is still ending
    interrupted="" code=0
    wait "$verb" || code=$?
  done
  return "$code"
}

# Until so many nodes have joined Ray.
await_nodes() {
  python - "$1" "${steps[@]}" <<'WAIT' &
import os, sys, time, ray

wanted, *steps = map(int, sys.argv[1:])
end, count, why = time.monotonic() + 600, 0, ""
while count < wanted:
    if time.monotonic() > end:
        sys.exit(f"error: {count} of {wanted} nodes have joined Ray in 10 minutes; see above what they say. {why}")
    try:
        for step in steps:
            os.kill(step, 0)
    except ProcessLookupError:
        sys.exit("error: Ray has ended on a node before all had joined; see above what its step says")
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        count = sum(node["Alive"] for node in ray.nodes())
    except Exception as error:  # of several kinds while a head is starting
        why = str(error)
    time.sleep(1)
WAIT
  verb=$!
  follow
  verb=""
}

RAY_ADDRESS=$(address_of "${nodes[0]}"):$port
start_ray "${nodes[0]}" --head --port="$port" --temp-dir="$scratch" --dashboard-host=127.0.0.1 \
  --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=$((port + 3))
export RAY_ADDRESS
await_nodes 1 # the others would give up on a head that is not there yet
for node in "${nodes[@]:1}"; do
  start_ray "$node" --address="$RAY_ADDRESS" --dashboard-agent-listen-port=$((port + 4))
done
await_nodes "${#nodes[@]}"
echo "${#nodes[@]} nodes have joined Ray at $RAY_ADDRESS"

<command> &
verb=$!
follow
