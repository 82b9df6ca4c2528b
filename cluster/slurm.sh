#!/usr/bin/env bash
# One evaluation on Slurm: sbatch cluster/slurm.sh evaluate quickstart --root /shared/runs/quickstart ...
# The same command again goes on from what is committed; so does a requeued job.
#SBATCH --job-name=ctxasr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run me with sbatch}"
[ $# -ge 2 ] || { echo "usage: sbatch cluster/slurm.sh COMMAND RECIPE [OPTIONS]" >&2; exit 2; }

# Every process of this job's Ray asks for a token that only this user can read.
umask 077
token=$PWD/.ray_token.$SLURM_JOB_ID
trap 'rm -f "$token"' EXIT
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  .venv/bin/ray start --head --node-ip-address="$head" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \
  --include-dashboard=false --disable-usage-stats --block &
for ((waited = 0; ; waited++)); do
  if (: > "/dev/tcp/$head/$port") 2> /dev/null; then break; fi
  if ! kill -0 $! 2> /dev/null || ((waited == ${HEAD_WAIT_S:-300})); then
    echo "slurm.sh: the Ray head on $head did not answer on port $port within $waited s; what it said stands above." >&2
    exit 1
  fi
  sleep 1
done
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
    .venv/bin/ray start --address="$head:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats --block &
done
# A run waits up to a minute for its nodes, and is refused in words where its pools do not fit.
.venv/bin/ctxasr "$@" --address "$head:$port"
