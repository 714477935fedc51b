#!/usr/bin/env bash
# A training run on the GPUs of a Slurm cluster. See --help.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib.sh
source "$folder/lib.sh"

usage() {
    cat <<'END'
usage: launch/slurm.sh OPTION… [-- ARGUMENTS OF THE TRAINING…]

Submits a training run with one process for each GPU, in the virtual environment that is active:

    launch/slurm.sh --nodes 2 --gpus-per-node 8 --time 12:00:00 \
        --config configs/llama3_8b_20ng.py:lora --workdir /scratch/my-run \
        -- --config.train.steps=2000

Before the time is up, and when the job is preempted, the training gets SIGTERM, saves, and ends
with exit code 75; the job then goes back into the queue and resumes. Other exit codes are the
job's own. The log is jaxclf-JOB.log in the folder that you submit from.

options:
  --nodes N                 (default: 1)
  --gpus-per-node N         (default: 8)
  --cpus-per-task N         processor cores for each GPU (default: 8)
  --time LIMIT              of one stretch, such as 12:00:00 (default: the partition's)
  --partition PARTITION
  --account ACCOUNT
  --grace-seconds N         from SIGTERM to the end of --time, time to save (default: 120). At a
                            preemption the cluster's GraceTime or KillWait counts instead, often 30
                            seconds (`scontrol show config`): where a save takes longer, set
                            --config.train.save_steps to what you can afford to lose
  --name NAME               of the job (default: jaxclf)
  --config FILE.py[:VARIANT,...]   such as configs/quickstart.py:smoke
  --workdir FOLDER          receives all results; on a disk that all nodes share
  --dry-run                 print the command and do not run it

Any other option of sbatch is set by its environment variable, such as SBATCH_QOS. For gated models
of the Hugging Face hub, run `hf auth login` once, or have HF_TOKEN in the environment, which sbatch
hands on: the token is in no argument and no log.
END
}

nodes=1 gpus_per_node=8 cpus_per_task=8 time='' partition='' account='' grace_seconds=120
name=jaxclf config='' workdir='' dry_run=''
known="nodes gpus-per-node cpus-per-task time partition account grace-seconds name config workdir"
parse "$known" dry-run "$@"

require_number nodes
require_number gpus-per-node
require_number cpus-per-task
require_number grace-seconds
require_name name
[[ $workdir != *://* ]] ||
    fail "--workdir $workdir: expected a folder on a disk that all nodes share"
training_command

job=(
    --job-name="$name"
    --nodes="$nodes"
    # JAX finds its place in the job from Slurm's variables and takes one GPU for each process, so
    # every process must see all GPUs of its node: not --gpus-per-task.
    --ntasks-per-node="$gpus_per_node"
    --gpus-per-node="$gpus_per_node"
    --cpus-per-task="$cpus_per_task"
    # To the processes of srun. (B:TERM would reach the batch script alone.)
    --signal="TERM@$grace_seconds"
    --requeue
    # One log for all stretches of the job.
    --output=jaxclf-%j.log
    --open-mode=append
)
[[ -z $time ]] || job+=(--time="$time")
[[ -z $partition ]] || job+=(--partition="$partition")
[[ -z $account ]] || job+=(--account="$account")
run sbatch "${job[@]}" "$folder/slurm.sbatch" "${training[@]}"
