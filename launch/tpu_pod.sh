#!/usr/bin/env bash
# A training run on a Cloud TPU pod slice, from queued resource to result. See --help.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib.sh
source "$folder/lib.sh"

usage() {
    cat <<'END'
usage: launch/tpu_pod.sh COMMAND OPTION… [-- ARGUMENTS OF THE TRAINING…]

Trains on all workers of a Cloud TPU pod slice. All commands take the same options and read those
they need, so one line with another word in front does everything:

    launch/tpu_pod.sh watch --name my-run --zone us-east5-a --accelerator-type v5p-64 --spot \
        --config configs/llama3_8b_20ng.py:lora \
        --bucket my-bucket --workdir /mnt/jaxclf/runs/my-run \
        -- --config.train.steps=2000

commands:
  create    ask for the slice, as a queued resource
  wait      until the slice is there
  install   put the project on all workers
  start     mount the bucket and start the training on all workers, in the background; where it runs
            already, it is left alone. Preempted (exit code 75, all saved) it is started again, else
            it has ended
  restart   after the slice was preempted: delete what is left of it, create, wait, install, start.
            The training resumes from the checkpoints in the workdir
  watch     bring the training to its end: restart whenever the slice is lost (or not there yet),
            start where a worker came back. Ends with the training's exit code
  status    of the slice and of the training on each worker
  logs      follow a worker's log
  stop      let the training save and end on all workers
  delete    delete the slice and its queued resource

End `watch` before you stop or delete: it would start and create again.

options:
  --name NAME               of the slice and its queued resource (default: jaxclf)
  --zone ZONE               such as us-east5-a
  --project PROJECT         (default: that of gcloud's configuration)
  --accelerator-type TYPE   such as v5p-64 (64 cores, 32 chips), v5litepod-16 or v6e-64
  --runtime-version IMAGE   (default: the one that goes with the type)
  --spot                    a slice that may be preempted, for less
  --reserved                a slice of your reservation
  --service-account EMAIL   of the workers, with roles/storage.objectUser on the bucket and
                            roles/secretmanager.secretAccessor on the secret (default: that of
                            Compute Engine)
  --revision REVISION       git revision of the project to install (default: HEAD)
  --config FILE.py[:VARIANT,...]   one of the project's, such as configs/quickstart.py:smoke
  --bucket NAME             bucket of Cloud Storage, mounted on all workers at /mnt/jaxclf
  --workdir FOLDER          receives all results: /mnt/jaxclf/…, or without --bucket the absolute
                            path of a folder that you have mounted on all workers, such as NFS
  --hf-token-secret NAME    secret of Secret Manager with your Hugging Face token. Each worker reads
                            it itself, into HF_TOKEN of the training. The token passes through no
                            argument and no log
  --worker N                whose log `logs` follows (default: 0)
  --dry-run                 print the commands and run none

A bucket made like this has real folders, so that a checkpoint appears as a whole or not at all:

    gcloud storage buckets create gs://my-bucket --location=us-east5 \
        --uniform-bucket-level-access --enable-hierarchical-namespace
END
}

name=jaxclf zone='' project='' accelerator_type='' runtime_version='' spot='' reserved=''
service_account='' revision=HEAD config='' bucket='' workdir='' hf_token_secret='' worker=0
dry_run=''

# -- what is checked before anything is asked for, or deleted

check_slice() {
    require accelerator-type v5p-64
    [[ $accelerator_type =~ ^v[0-9]+[a-z]*-[1-9][0-9]*$ ]] ||
        fail "--accelerator-type $accelerator_type: expected VERSION-CORES, such as v5p-64," \
            "v5litepod-16 or v6e-64"
    [[ $accelerator_type != v5e-* ]] ||
        fail "--accelerator-type $accelerator_type: its name is v5litepod-${accelerator_type#*-}"
    [[ -z $spot || -z $reserved ]] || fail "--spot and --reserved exclude each other; drop one"
    [[ -n $runtime_version ]] || case $accelerator_type in
        v6e-*) runtime_version=v2-alpha-tpuv6e ;;
        v5p-*) runtime_version=v2-alpha-tpuv5 ;;
        v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
        v[234]-*) runtime_version=tpu-ubuntu2204-base ;;
        *) fail "--accelerator-type $accelerator_type: no runtime known; give --runtime-version" ;;
    esac
}

check_training() {
    require_folder
    training_command
}

# -- gcloud

# ask COMMAND…: a command whose answer is used, and so not shown; see run.
ask() {
    if [[ -n $dry_run ]]; then run "$@" >&3; else "$@"; fi
}

on_workers() {
    run gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker=all --command="$1"
}

# slice_state: the state of the queued resource; or ABSENT; or PREEMPTED, which it can call ACTIVE
# for a while; or UNKNOWN where gcloud has no answer, which says nothing about the slice.
slice_state() {
    local state node
    if state=$(ask gcloud compute tpus queued-resources describe "$name" "${here[@]}" \
        '--format=value(state.state)' 2>"$scratch/error"); then
        [[ -z $dry_run ]] || state=ACTIVE
    elif grep -q NOT_FOUND "$scratch/error"; then
        state=ABSENT
    else
        cat "$scratch/error" >&2
        state=UNKNOWN
    fi
    if [[ $state == ACTIVE ]]; then
        node=$(ask gcloud compute tpus tpu-vm describe "$name" "${here[@]}" \
            '--format=value(state)') || node=UNKNOWN
        [[ $node != PREEMPTED && $node != TERMINATED ]] || state=PREEMPTED
    fi
    echo "$state"
}

# -- commands

create() {
    local options=(
        --node-id="$name"
        --accelerator-type="$accelerator_type"
        --runtime-version="$runtime_version"
    )
    [[ -z $spot ]] || options+=(--spot)
    [[ -z $reserved ]] || options+=(--reserved)
    [[ -z $service_account ]] || options+=(--service-account="$service_account")
    run gcloud compute tpus queued-resources create "$name" "${here[@]}" "${options[@]}"
}

wait_until_active() {
    local state
    while true; do
        state=$(slice_state)
        case $state in
            ACTIVE) return ;;
            ABSENT | FAILED | SUSPENDING | SUSPENDED | PREEMPTED)
                say "error: slice $name is $state and will not come; \`restart\` asks anew"
                exit 1
                ;;
        esac
        say "slice $name: $state"
        sleep 60
    done
}

install() {
    local archive=$scratch/jaxclf.tar.gz
    run git -C "$folder/.." archive --prefix=jaxclf/ --output="$archive" "$revision"
    on_workers 'mkdir -p jaxclf'
    run gcloud compute tpus tpu-vm scp "$archive" "$folder/worker.sh" "$name:jaxclf/" \
        "${here[@]}" --worker=all
    on_workers "bash jaxclf/worker.sh install ${bucket:+--gcsfuse }jaxclf.tar.gz"
}

start() {
    local options=()
    [[ -z $bucket ]] || options+=(--bucket "$bucket")
    [[ -z $hf_token_secret ]] || options+=(--hf-token-secret "$hf_token_secret")
    options+=("${training[@]}")
    on_workers "$(quoted bash jaxclf/worker.sh start "${options[@]}")"
}

delete() {
    run gcloud compute tpus queued-resources delete "$name" "${here[@]}" --force
}

restart() {
    local state
    state=$(slice_state)
    [[ $state != UNKNOWN ]] || exit 1
    if [[ $state == ACTIVE && -z $dry_run ]]; then
        say "error: slice $name is ACTIVE: \`start\` uses it; for another one, \`delete\` it first"
        exit 1
    fi
    [[ $state == ABSENT ]] || delete
    create
    wait_until_active
    install
    start
}

# A worker without worker.sh has nothing installed either.
training_state='bash jaxclf/worker.sh status 2>/dev/null || echo bare'

watch() {
    local state workers codes doubtful=''
    while true; do
        state=$(slice_state)
        workers=''
        if [[ $state == ACTIVE ]]; then
            # Of a worker that does not answer nothing is known; the next look may tell.
            workers=$(ask gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker=all \
                --command="$training_state") || workers=''
        fi
        if [[ -n $dry_run ]]; then
            state=PREEMPTED # to show what that would lead to
        else
            say "slice $name: $state${workers:+, training: ${workers//$'\n'/, }}"
        fi
        # A step that fails, such as for a slice lost again meanwhile, is no reason to end.
        case $state:$workers in
            ABSENT:* | FAILED:* | SUSPENDED:* | PREEMPTED:*)
                bash "${BASH_SOURCE[0]}" restart "${arguments[@]}" || true
                ;;
            ACTIVE:*bare*)
                { bash "${BASH_SOURCE[0]}" install "${arguments[@]}" && start; } || true
                ;;
            # A worker was shut down, saved, and came back. The others wait for it.
            ACTIVE:*idle* | ACTIVE:*"ended 75"*) start || true ;;
            ACTIVE:*running*) doubtful='' ;;
            ACTIVE:*ended*)
                codes=$(grep -o 'ended [0-9]*' <<<"$workers" | sort -nuk2 | cut -d' ' -f2)
                # Workers can fail because the slice is being taken away, before its state tells:
                # only a failure that is still there at the next look is the training's own.
                [[ $codes != 0 && -z $doubtful ]] || exit "${codes##*$'\n'}"
                doubtful=yes
                ;;
        esac
        [[ -z $dry_run ]] || return 0
        sleep 60
    done
}

status() {
    local state
    state=$(slice_state)
    [[ -n $dry_run ]] || echo "slice $name: $state"
    [[ $state != ACTIVE ]] || on_workers "$training_state"
}

logs() {
    run gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker="$worker" \
        --command='tail -n 100 -F jaxclf/train.log'
}

stop() { on_workers 'bash jaxclf/worker.sh stop'; }

# -- the command line

command=${1:-}
case $command in
    -h | --help)
        usage
        exit 0
        ;;
    create | wait | install | start | restart | watch | status | logs | stop | delete) shift ;;
    *)
        fail "'$command': no such command; expected create, wait, install, start, restart, watch," \
            "status, logs, stop or delete (--help tells more)"
        ;;
esac
arguments=("$@")
known="name zone project accelerator-type runtime-version service-account revision config bucket"
known+=" workdir hf-token-secret worker"
parse "$known" "spot reserved dry-run" "$@"

require zone us-east5-a
require_name name
require_word bucket hf-token-secret
here=(--zone="$zone" --quiet)
[[ -z $project ]] || here+=(--project="$project")
case $command in create | restart | watch) check_slice ;; esac
case $command in start | restart | watch) check_training ;; esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[[ -z $dry_run ]] || exec 3>&1 # for ask
case $command in
    wait) wait_until_active ;;
    *) "$command" ;;
esac
