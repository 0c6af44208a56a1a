#!/usr/bin/env bash
# A sweep on Slurm: Ray's head on the first node, workers on the others, one job.
#
#   export DLLM_SWEEP_STORE=postgresql://...
#   sbatch --export=ALL examples/cluster/slurm.sh sweep.yaml
#
# Preempted or out of time, the job stops softly and goes back into the queue; started again, it runs
# what is not finished. docs/clusters/slurm.md explains it.
#SBATCH --job-name=dllm-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
set -euo pipefail

sweep=${1:?usage: sbatch slurm.sh SWEEP_FILE}
: "${DLLM_SWEEP_STORE:?set it to a Postgres database: a SQLite file does not survive a change of nodes}"
# A folder that all nodes see, for the token; logs and weights go where the sweep says.
shared=${DLLM_SWEEP_SHARED:-$PWD}
# Seconds for units in flight once Slurm wants the nodes back; less than --signal gives.
grace_s=${DLLM_SWEEP_GRACE_S:-120}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
workers=("${nodes[@]:1}")

# Other users' jobs may run on these nodes: Ray answers only who has this job's token.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$shared/.ray-token-$SLURM_JOB_ID"
(umask 077 && head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

# Ports of this job's own, and a path short enough for sockets.
port=$((20000 + SLURM_JOB_ID % 20000))
temp="/tmp/ray-$SLURM_JOB_ID"
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | tr ' ' '\n' | grep -m1 '\.')
export RAY_ADDRESS="$head_ip:$port"

# With job control each of these is a group of its own, which a signal to this script spares.
set -m
# shellcheck disable=SC2329
clean() {
  trap '' USR1 TERM
  for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null || true; done
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap clean EXIT

ulimit -n "$(ulimit -Hn)"
srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" --temp-dir="$temp" \
  --include-dashboard=false --disable-usage-stats &
for ((tries = 0; tries < 60; tries++)); do
  if ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; then break; fi
  sleep 1
done
for node in "${workers[@]}"; do
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
    ray start --block --address="$RAY_ADDRESS" --disable-usage-stats &
done

# Ctrl-C once lets units in flight end, twice stops at once: both lose nothing that was committed.
stopping=
# shellcheck disable=SC2329
stop() {
  stopping=yes interrupted=yes
  kill -INT "$launch" 2>/dev/null || true
  (sleep "$grace_s" && kill -INT "$launch" 2>/dev/null) &
}
trap stop USR1 TERM

# A new try takes the sweep over from the one before, which cannot be running any more.
dllm-sweep launch "$sweep" --address "$RAY_ADDRESS" --takeover &
launch=$!
# A signal ends `wait` before the program does.
interrupted=yes
while [[ -n $interrupted ]]; do
  interrupted='' code=0
  wait "$launch" || code=$?
done

if [[ -n $stopping && $code -ne 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
