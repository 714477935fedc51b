#!/usr/bin/env bash
# A training run on a TPU slice of a GKE cluster, as a JobSet. See --help.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib.sh
source "$folder/lib.sh"

usage() {
    cat <<'END'
usage: launch/gke.sh COMMAND OPTION… [-- ARGUMENTS OF THE TRAINING…]

Trains on one TPU slice of the GKE cluster that kubectl talks to. All commands take the same
options and read those they need:

    launch/gke.sh apply --name my-run --image us-docker.pkg.dev/my-project/images/jaxclf \
        --accelerator tpu-v5p-slice --topology 2x4x4 \
        --config configs/llama3_8b_20ng.py:lora \
        --bucket my-bucket --workdir /mnt/jaxclf/runs/my-run \
        -- --config.train.steps=2000

commands:
  manifest  print the JobSet: launch/jobset.yaml, filled in
  apply     submit it. Preempted (exit code 75, all saved), or after a lost node, it restarts by
            itself and resumes. A JobSet that has ended is in the way of a new one: `delete` it
  status    of the JobSet and its pods
  logs      follow the log of the first host
  delete    stop and delete the JobSet. The training saves first: `apply` resumes it

options:
  --name NAME               of the JobSet (default: jaxclf)
  --image IMAGE             with the project, for instance that of launch/Dockerfile:
                            docker build --platform=linux/amd64 -f launch/Dockerfile -t IMAGE .
                            docker push IMAGE
  --accelerator TYPE        tpu-v4-podslice, tpu-v5p-slice, tpu-v5-lite-podslice or tpu-v6e-slice
  --topology AxB[xC]        the chips of the slice: 2x4x4 has 32, on 8 hosts
  --chips-per-host N        1, 4 or 8 (default: 4)
  --config FILE.py[:VARIANT,...]   one of the project's, such as configs/quickstart.py:smoke
  --bucket NAME             bucket of Cloud Storage that all pods share, mounted at /mnt/jaxclf; or
  --claim NAME              PersistentVolumeClaim that many pods may write to (ReadWriteMany), such
                            as one of Filestore, mounted there
  --workdir /mnt/jaxclf/…   receives all results
  --service-account NAME    Kubernetes service account that may write to the bucket
                            (default: default)
  --hf-token-secret NAME    Kubernetes Secret whose key HF_TOKEN is your Hugging Face token, made
                            by `kubectl create secret generic NAME --from-file=HF_TOKEN=FILE`. The
                            token is in no argument and no manifest
  --namespace NAMESPACE     (default: default)
  --max-restarts N          (default: 20)
  --grace-seconds N         from SIGTERM to SIGKILL, time to save (default: 600). Spot nodes give
                            15 seconds unless the node pool sets more: where a save takes longer,
                            set --config.train.save_steps to what you can afford to lose
  --dry-run                 print the commands and run none

The cluster needs a node pool with the slice and JobSet 0.6 or newer, which a cluster made by xpk
has (https://jobset.sigs.k8s.io/docs/installation); for --bucket also Workload Identity Federation
and the Cloud Storage FUSE CSI driver:

    gcloud container clusters update CLUSTER --location=LOCATION \
        --workload-pool=PROJECT.svc.id.goog
    gcloud container clusters update CLUSTER --location=LOCATION \
        --update-addons=GcsFuseCsiDriver=ENABLED

A bucket made like this has real folders, so that a checkpoint appears as a whole or not at all; the
second command lets the pods (of namespace and service account `default`) write to it:

    gcloud storage buckets create gs://my-bucket --location=us-east5 \
        --uniform-bucket-level-access --enable-hierarchical-namespace
    pool=projects/PROJECT_NUMBER/locations/global/workloadIdentityPools/PROJECT.svc.id.goog
    gcloud storage buckets add-iam-policy-binding gs://my-bucket --role=roles/storage.objectUser \
        --member="principal://iam.googleapis.com/$pool/subject/ns/default/sa/default"
END
}

name=jaxclf image='' accelerator='' topology='' chips_per_host=4 config='' bucket='' claim=''
workdir='' service_account=default hf_token_secret='' namespace=default max_restarts=20
grace_seconds=600 dry_run=''

# check_slice: from accelerator and topology, how many `hosts`.
check_slice() {
    local dimensions sides chips=1 side
    require accelerator tpu-v5p-slice
    case $accelerator in
        tpu-v4-podslice | tpu-v5p-slice) dimensions=3 ;;
        tpu-v5-lite-podslice | tpu-v6e-slice) dimensions=2 ;;
        *)
            fail "--accelerator $accelerator: expected tpu-v4-podslice, tpu-v5p-slice," \
                "tpu-v5-lite-podslice or tpu-v6e-slice"
            ;;
    esac
    require topology 2x4x4
    [[ $topology =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})+$ ]] ||
        fail "--topology $topology: expected numbers of chips with x between, such as 2x4x4"
    IFS=x read -ra sides <<<"$topology"
    ((${#sides[@]} == dimensions)) ||
        fail "--topology $topology: has ${#sides[@]} dimensions, $accelerator has $dimensions," \
            "such as $([[ $dimensions == 3 ]] && echo 2x4x4 || echo 4x8)"
    for side in "${sides[@]}"; do
        ((side == 1 || side == 2 || side % 4 == 0)) ||
            fail "--topology $topology: $side chips on a side; expected 1, 2 or a multiple of 4"
        chips=$((chips * side))
    done
    [[ $chips_per_host == [148] ]] ||
        fail "--chips-per-host $chips_per_host: expected 1, 4 or 8"
    ((chips % chips_per_host == 0)) ||
        fail "--topology $topology: $chips chips do not fill hosts of $chips_per_host chips; take" \
            "another topology, or set --chips-per-host"
    hosts=$((chips / chips_per_host))
    # The label of the nodes, which must equal ours, has the shorter sides first, but for 2x2x1.
    topology=$(printf '%s\n' "${sides[@]}" | sort -n | paste -sd x -)
    [[ $topology != 1x2x2 ]] || topology=2x2x1
}

check_run() {
    require_name name
    require_word namespace service-account hf-token-secret bucket claim
    require image us-docker.pkg.dev/PROJECT/REPOSITORY/jaxclf
    [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._:/@-]*$ ]] ||
        fail "--image $image: expected a name such as us-docker.pkg.dev/PROJECT/REPOSITORY/jaxclf"
    check_slice
    [[ -n $bucket || -n $claim ]] ||
        fail "--bucket: not given, and needed here, such as --bucket my-bucket; or else --claim"
    [[ -z $bucket || -z $claim ]] || fail "--bucket and --claim exclude each other; drop one"
    require_folder
    require_number max-restarts
    require_number grace-seconds
    training_command
    local word
    for word in "${training[@]}"; do
        [[ $word != *[[:cntrl:]]* ]] ||
            fail "$(quoted "$word"): has a line break or another control character; drop it"
    done
}

# command_json: the training's command as JSON strings, which are YAML too. $ is doubled because
# Kubernetes puts the variable's value in the place of $(NAME) in a command.
command_json() {
    local word list=''
    for word in "${training[@]}"; do
        word=${word//\\/\\\\}
        word=${word//\"/\\\"}
        word=${word//\$/\$\$}
        list+=", \"$word\""
    done
    printf '%s' "${list#, }"
}

# fill NAME VALUE: put the value in the place of @NAME@. (Unquoted, & in it would be special.)
fill() { text=${text//@$1@/"$2"}; }

manifest() {
    local text optional=true gcsfuse=false volume
    # Without --hf-token-secret there is no such secret, and none is needed.
    [[ -z $hf_token_secret ]] || optional=false
    volume="persistentVolumeClaim: {claimName: \"$claim\"}"
    if [[ -n $bucket ]]; then
        gcsfuse=true
        # What the options are for stands in worker.sh.
        volume='csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: {mountOptions:'
        volume+=' "implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0",'
        volume+=" bucketName: \"$bucket\"}}"
    fi
    text=$(<"$folder/jobset.yaml")
    fill NAME "$name"
    fill MAX_RESTARTS "$max_restarts"
    fill HOSTS "$hosts"
    fill GCSFUSE "$gcsfuse"
    fill VOLUME "$volume"
    fill SERVICE_ACCOUNT "$service_account"
    fill GRACE_SECONDS "$grace_seconds"
    fill ACCELERATOR "$accelerator"
    fill TOPOLOGY "$topology"
    fill IMAGE "$image"
    fill HF_TOKEN_SECRET "${hf_token_secret:-none}"
    fill HF_TOKEN_OPTIONAL "$optional"
    fill CHIPS "$chips_per_host"
    fill COMMAND "$(command_json)"
    printf '%s\n' "$text"
}

apply() {
    local text
    text=$(manifest)
    run kubectl apply --namespace="$namespace" --filename=- <<<"$text"
}

status() {
    run kubectl get jobset "$name" --namespace="$namespace"
    run kubectl get pods --namespace="$namespace" --selector="jobset.sigs.k8s.io/jobset-name=$name"
}

logs() {
    local first="batch.kubernetes.io/job-completion-index=0"
    run kubectl logs --namespace="$namespace" --follow --tail=100 \
        --selector="jobset.sigs.k8s.io/jobset-name=$name,$first"
}

delete() { run kubectl delete jobset "$name" --namespace="$namespace"; }

command=${1:-}
case $command in
    -h | --help)
        usage
        exit 0
        ;;
    manifest | apply | status | logs | delete) shift ;;
    *)
        fail "'$command': no such command; expected manifest, apply, status, logs or delete" \
            "(--help tells more)"
        ;;
esac
known="name image accelerator topology chips-per-host config bucket claim workdir service-account"
known+=" hf-token-secret namespace max-restarts grace-seconds"
parse "$known" dry-run "$@"
case $command in manifest | apply) check_run ;; esac
"$command"
