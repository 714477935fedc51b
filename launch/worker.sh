#!/usr/bin/env bash
# What runs on each worker of a slice. tpu_pod.sh puts it into ~/jaxclf and calls it there:
#
#   worker.sh install [--gcsfuse] ARCHIVE
#                                install the project, and what mounts a bucket
#   worker.sh start [--bucket NAME] [--hf-token-secret NAME] COMMAND…
#                                mount the bucket at /mnt/jaxclf and run the command in the
#                                background, and again when it was preempted
#   worker.sh run [--hf-token-secret NAME] COMMAND…
#                                run it in the foreground
#   worker.sh status             bare (nothing installed), idle, running, or ended CODE
#   worker.sh stop               let the training save and end; returns when it has
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PATH="$PWD/venv/bin:$PATH" # where `python` is

# Whoever runs the training holds this lock until the last of its processes has ended, whatever
# happens to them and to the machine. A process id in a file would outlive both.
is_running() { ! flock --shared --nonblock lock true; }

install() {
    rm -f configs # without it, this is a bare worker
    if [[ $1 == --gcsfuse ]]; then
        install_gcsfuse
        shift
    fi
    # The images of TPU machines bring an older Python than the project takes; uv fetches one.
    [[ -x uv/uv ]] || curl -LsSf https://astral.sh/uv/install.sh | UV_UNMANAGED_INSTALL=$PWD/uv sh
    uv/uv venv --quiet --allow-existing --python 3.12 venv
    uv/uv pip install --quiet --python venv/bin/python --reinstall-package jaxclf \
        "jaxclf[tpu] @ file://$PWD/$(basename "$1")"
    # `--config configs/NAME.py` names a file, which the package has brought along.
    ln -sfn "$(python -c 'from jaxclf.config.loading import CONFIGS; print(CONFIGS)')" configs
}

install_gcsfuse() {
    local version=3.8.0 # the same on all workers, however late one comes
    local releases=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
    curl -LsSf -o gcsfuse.deb "$releases/v$version/gcsfuse_${version}_amd64.deb"
    # A new machine may be busy with its own updates: then this update can fail, and the
    # installation has to wait.
    sudo apt-get -qq update || true
    sudo apt-get -qq -o DPkg::Lock::Timeout=600 install "$PWD/gcsfuse.deb"
}

# mount_bucket BUCKET: at /mnt/jaxclf, unless it is there.
mount_bucket() {
    local now options=(
        --implicit-dirs             # see folders that another tool uploaded
        --rename-dir-limit=200000   # a checkpoint is a folder that is renamed when it is complete
        --metadata-cache-ttl-secs=0 # see at once what the other workers wrote
    )
    now=$(findmnt --noheadings --output SOURCE /mnt/jaxclf) || true
    if [[ $now == "$1" ]] && ls /mnt/jaxclf >/dev/null; then
        return
    fi
    [[ -z $now ]] || sudo umount /mnt/jaxclf # another bucket, or a gcsfuse that has died
    # The files are visible to the user who mounts them, and to no other.
    sudo mkdir -p /mnt/jaxclf
    sudo chown "$(id -u)" /mnt/jaxclf
    gcsfuse "${options[@]}" "$1" /mnt/jaxclf
}

# keep_going COMMAND…: run it, and again as long as it ends with 75: preempted, with all saved, so
# it resumes. Its exit code is the last one. SIGTERM to this script as well is a wish to end.
keep_going() {
    local code=75 stopping=
    # Bash runs the trap when the command has ended, so nothing is cut short.
    trap 'stopping=yes' TERM
    while ((code == 75)) && [[ -z $stopping ]]; do
        code=0
        "$@" || code=$?
        printf '%s ended with exit code %d\n' "$(date --iso-8601=seconds)" "$code"
    done
    return "$code"
}

run() {
    exec 9>lock
    # A moment's patience: is_running may be asking.
    flock --timeout 5 9 || { echo "error: already running; see status and stop" >&2 && exit 1; }
    echo $$ >pid
    rm -f exit_code
    trap 'echo $? >exit_code' EXIT
    if [[ $1 == --hf-token-secret ]]; then
        # Only here: in no argument, log or file, and in the environment of the training alone.
        HF_TOKEN=$(gcloud secrets versions access latest --secret="$2")
        export HF_TOKEN
        shift 2
    fi
    keep_going "$@"
}

start() {
    if is_running; then
        echo "already running"
        return
    fi
    if [[ $1 == --bucket ]]; then
        mount_bucket "$2"
        shift 2
    fi
    rm -f exit_code # or it would pass for this run's
    # Detached, or it would end with the connection.
    setsid bash worker.sh run "$@" >>train.log 2>&1 </dev/null &
}

status() {
    if ! [[ -e configs ]]; then
        echo bare
    elif is_running; then
        echo running
    elif [[ -s exit_code ]]; then
        echo "ended $(<exit_code)"
    else
        echo idle
    fi
}

stop() {
    if is_running; then
        local loop
        loop=$(<pid)
        kill -TERM "$loop" # the loop first, or it would start the next
        pkill -TERM --parent "$loop" || true
        flock --shared lock true # until all have ended
    fi
    status
}

case ${1:-} in
    install | start | run | status | stop) "$@" ;;
    *)
        echo "error: '${1:-}': expected install, start, run, status or stop" >&2
        exit 2
        ;;
esac
