# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # the launchers have and read the variables of the options
# What the launchers share. They source it; it does nothing by itself.

# Where --bucket is mounted on every host; worker.sh and jobset.yaml say so too.
mounted=/mnt/jaxclf

# fail WORD…: the arguments are wrong. Say how, and end as the project's commands do.
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

say() { printf '%s\n' "$*" >&2; }

# quoted WORD…: one line of shell that gives these words again, whatever is in them.
quoted() {
    local line
    printf -v line '%q ' "$@"
    printf '%s' "${line% }"
}

# run COMMAND…: run it, or only print it where --dry-run was given.
run() {
    if [[ -n $dry_run ]]; then
        printf '+ %s\n' "$(quoted "$@")"
    else
        "$@"
    fi
}

# parse OPTIONS FLAGS WORD…: read `--some-name VALUE` or `--some-name=VALUE` into $some_name for
# every name in OPTIONS, `--some-flag` into $some_flag=yes, and what follows `--` into the array
# `rest`.
parse() {
    local takes_value=" $1 " takes_none=" $2 " names key
    read -ra names <<<"$1 $2"
    shift 2
    rest=()
    while (($#)); do
        case $1 in
            --)
                rest=("${@:2}")
                return
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        esac
        key=${1#--}
        if [[ $1 == --* && $takes_none == *" $key "* ]]; then
            printf -v "${key//-/_}" yes
            shift
        elif [[ $1 == --* && $takes_value == *" $key "* ]]; then
            [[ $# -gt 1 && -n $2 && $2 != --* ]] ||
                fail "--$key: no value given; write --$key VALUE"
            printf -v "${key//-/_}" '%s' "$2"
            shift 2
        else
            fail "$1: no such option; expected one of$(printf ' --%s' "${names[@]}")." \
                "What the training is to get stands after --"
        fi
    done
}

# require NAME EXAMPLE: the option must have been given.
require() {
    local variable=${1//-/_}
    [[ -n ${!variable} ]] || fail "--$1: not given, and needed here, such as --$1 $2"
}

# require_number NAME: the option must be a whole number from 1 up.
require_number() {
    local variable=${1//-/_}
    [[ ${!variable} =~ ^[1-9][0-9]{0,8}$ ]] ||
        fail "--$1 ${!variable}: expected a whole number from 1 up"
}

# require_name NAME: the option must be a name that Google Cloud and Kubernetes give to a run.
require_name() {
    local variable=${1//-/_}
    [[ ${!variable} =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
        fail "--$1 ${!variable}: expected at most 40 small letters, digits and dashes," \
            "a letter first and no dash last"
}

# require_word NAME…: each option must be a name of something that exists, or not be given.
require_word() {
    local variable name
    for name in "$@"; do
        variable=${name//-/_}
        [[ -z ${!variable} || ${!variable} =~ ^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$ ]] ||
            fail "--$name ${!variable}: expected the name alone, of small letters, digits," \
                "dashes, dots and underscores"
    done
}

# require_folder: --workdir must be a folder that all hosts see under this path. (A host's own disk
# would not do: the hosts write one checkpoint together, and a preempted host's disk is gone.)
require_folder() {
    local name folder
    require workdir "$mounted/runs/my-run"
    if [[ $workdir == gs://* ]]; then
        IFS=/ read -r name folder <<<"${workdir#gs://}"
        fail "--workdir $workdir: expected a folder; mount the bucket as one: --bucket" \
            "${name:-NAME} --workdir $mounted/${folder:-FOLDER}"
    fi
    [[ $workdir == /* ]] ||
        fail "--workdir $workdir: expected an absolute path, the same on all hosts, such as" \
            "$mounted/runs/my-run"
    [[ -z ${bucket:-}${claim:-} || $workdir == "$mounted"/?* ]] ||
        fail "--workdir $workdir: expected a folder in $mounted, where the hosts share files"
}

# training_command: the command of every process, in the array `training`. --distributed calls
# jax.distributed.initialize(), which finds out from the machine who the other processes are.
training_command() {
    require config configs/NAME.py
    require workdir FOLDER
    [[ $config =~ ^[^:]+\.py(:.*)?$ ]] ||
        fail "--config $config: expected FILE.py[:VARIANT,...], such as configs/quickstart.py"
    training=(
        python -m jaxclf.train --distributed --config "$config" --workdir "$workdir"
        ${rest[@]+"${rest[@]}"} # an empty array is an error to bash before 4.4
    )
}
