#!/bin/bash
# sbatch deepspeed_configs/slurm.sh RECIPE.yaml [--key value ...]    two machines with 8 GPUs each, ZeRO-2
#SBATCH --job-name=rl_warmup
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

export LAYOUT=${LAYOUT:-zero2} GPUS=${GPUS:-8}
export ADDRESS PORT
ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
PORT=$((20000 + SLURM_JOB_ID % 20000))
export HF_HUB_OFFLINE=1  # machines that compute often have no network: fetch the model before, or name a folder

# One launcher per machine (srun starts it), which starts one process per GPU.
srun bash -c 'exec rl-warmup train --launch "$LAYOUT" \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$ADDRESS" --main_process_port "$PORT" --config "$@"' launch "$@"
