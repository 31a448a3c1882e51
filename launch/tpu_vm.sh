#!/usr/bin/env bash
# Trains on a Cloud TPU VM: a single host, or all hosts of a pod slice. Runs on your own machine; needs gcloud.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: launch/tpu_vm.sh [--dry-run] COMMAND NAME [options] [-- ARGUMENTS]

  create NAME --type v5litepod-8   asks for the TPU; billing begins        [--spot] [--queued] [--runtime VERSION]
  status NAME                      state of the TPU, and whether the training runs                      [--queued]
  install NAME                     copies this checkout to every host and installs it
  run NAME -- COMMAND ...          runs a command in the checkout on every host, e.g. to copy photos there
  start NAME -- ARGUMENTS          python -m qualiclip_jax.train ARGUMENTS on every host, in the background
  logs NAME                        follows the output of the first host (Ctrl-C ends the following, not the training)
  stop NAME                        SIGTERM: the training saves a checkpoint and ends
  fetch NAME --workdir runs/rn50   copies a run from the first host to here                       [--every SECONDS]
  push NAME --workdir runs/rn50    copies a run from here to the first host, to go on there
  delete NAME                      deletes the TPU and all that is on its disks; billing ends    [--yes] [--queued]

  --zone ZONE, --project PROJECT   else what gcloud is configured with
  --spot                           cheaper, may be taken away at any time: fetch often
  --queued                         as a queued resource: waits in line until there is capacity
  --runtime VERSION                image of the hosts; chosen by the type if left out
  --dry-run                        prints the commands instead of running them

All hosts run the same command. Only the first host reads and writes the run; photos and weights are read on every host.
USAGE
}

fail() {
    echo "error: $*" >&2
    exit 1
}

say() {
    [[ -n $dry_run ]] || echo "$*" >&2
}

# Runs a command, or prints it.
call() {
    if [[ -n $dry_run ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

remote_folder=qualiclip_jax # in the home directory of every host
dry_run="" command="" name="" type="" runtime="" spot="" queued="" yes="" workdir="" every=""
place=()
arguments=()

parse() {
    while (($#)); do
        case $1 in
            --dry-run) dry_run=yes ;;
            --spot) spot=--spot ;;
            --queued) queued=yes ;;
            --yes) yes=yes ;;
            --type | --runtime | --workdir | --every | --zone | --project)
                (($# > 1)) || fail "$1 needs a value"
                case $1 in
                    --type) type=$2 ;;
                    --runtime) runtime=$2 ;;
                    --workdir) workdir=${2%/} ;;
                    --every) every=$2 ;;
                    *) place+=("$1=$2") ;;
                esac
                shift
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            --)
                shift
                arguments=("$@")
                break
                ;;
            -*) fail "no such option: $1 (--help lists them)" ;;
            *)
                if [[ -z $command ]]; then
                    command=$1
                elif [[ -z $name ]]; then
                    name=$1
                else
                    fail "one name too many: $1 (arguments of the training follow --)"
                fi
                ;;
        esac
        shift
    done
}

# The image that fits a type of TPU.
runtime_of() {
    case $1 in
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v6e-*) echo v2-alpha-tpuv6e ;;
        v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
        tpu7x-*) fail "$1 is to be had on Google Kubernetes Engine only" ;;
        *) fail "which --runtime for $1? see https://cloud.google.com/tpu/docs/supported-tpu-versions" ;;
    esac
}

tpu() {
    call gcloud compute tpus "$@" ${place[@]+"${place[@]}"} # (this form for the old bash of macOS)
}

on_hosts() { # WORKER COMMAND
    tpu tpu-vm ssh "$name" "--worker=$1" --command="$2"
}

create() {
    [[ -n $type ]] || fail "which --type? e.g. --type v5litepod-8 (one host) or --type v5litepod-16 (two)"
    [[ -n $runtime ]] || runtime=$(runtime_of "$type")
    if [[ -n $queued ]]; then
        tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
            --runtime-version="$runtime" ${spot:+"$spot"}
        say "asked for; it is ready when 'launch/tpu_vm.sh status $name --queued' says ACTIVE"
    else
        tpu tpu-vm create "$name" --accelerator-type="$type" --version="$runtime" ${spot:+"$spot"}
    fi
    say "it costs money until 'launch/tpu_vm.sh delete $name${queued:+ --queued}'"
}

status() {
    if [[ -n $queued ]]; then
        tpu queued-resources describe "$name" --format="value(state.state)"
    fi
    tpu tpu-vm describe "$name" --format="value(state,health)"
    on_hosts all "cd $remote_folder 2>/dev/null || { echo not installed; exit 0; }
if kill -0 \$(cat train.pid 2>/dev/null) 2>/dev/null; then echo training runs; else echo no training; fi
tail -n 1 train.log 2>/dev/null || true"
}

install() {
    local root archive
    root=$(cd "$(dirname "$0")/.." && pwd)
    archive=$(mktemp -t qualiclip_jax.XXXXXX)
    # shellcheck disable=SC2064 # the name is known now
    trap "rm -f '$archive'" EXIT
    call tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs -czf "$archive" .
    tpu tpu-vm scp "$archive" "$name:qualiclip_jax.tar.gz" --worker=all
    # The images bring an older Python; uv fetches one.
    on_hosts all "set -e
mkdir -p $remote_folder
tar -xzf qualiclip_jax.tar.gz -C $remote_folder
cd $remote_folder
python3 -m pip install --quiet --user uv
[ -d .venv ] || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'
.venv/bin/python -m qualiclip_jax.train --help > /dev/null && echo installed"
}

# Quotes arguments for the shell of the hosts.
quoted() {
    printf '%q ' "$@"
}

run() {
    ((${#arguments[@]})) || fail "which command? e.g. launch/tpu_vm.sh run $name -- gcloud storage cp -r gs://mine/photos ."
    on_hosts all "cd $remote_folder && PATH=\"\$PWD/.venv/bin:\$PATH\" $(quoted "${arguments[@]}")"
}

start() {
    ((${#arguments[@]})) || fail "which config? e.g. launch/tpu_vm.sh start $name -- --config configs/vitb.py"
    on_hosts all "cd $remote_folder || exit 1
if kill -0 \$(cat train.pid 2>/dev/null) 2>/dev/null; then echo 'error: a training runs already'; exit 1; fi
QUALICLIP_COORDINATOR=auto nohup setsid .venv/bin/python -m qualiclip_jax.train $(quoted "${arguments[@]}") \
< /dev/null > train.log 2>&1 &
echo \$! > train.pid"
    say "started; 'launch/tpu_vm.sh logs $name' follows it"
}

logs() {
    on_hosts 0 "tail -n 100 -F $remote_folder/train.log"
}

stop() {
    on_hosts all "cd $remote_folder || exit 1
pid=\$(cat train.pid 2>/dev/null) && kill -TERM \"\$pid\" 2>/dev/null || { echo no training; exit 0; }
while kill -0 \"\$pid\" 2>/dev/null; do sleep 0.2; done
tail -n 1 train.log"
}

fetch_once() {
    tpu tpu-vm scp --recurse "$name:$remote_folder/$workdir" "$(dirname "$workdir")/" --worker=0
}

fetch() {
    [[ -n $workdir ]] || fail "which --workdir? e.g. --workdir runs/vitb"
    call mkdir -p "$(dirname "$workdir")"
    until fetch_once && [[ -z $every || -n $dry_run ]]; do
        [[ -n $every ]] || fail "not fetched"
        sleep "$every"
    done
}

push() {
    [[ -n $workdir ]] || fail "which --workdir? e.g. --workdir runs/vitb"
    [[ -d $workdir || -n $dry_run ]] || fail "no such directory: $workdir"
    on_hosts 0 "mkdir -p $remote_folder/$(dirname "$workdir")"
    tpu tpu-vm scp --recurse "$workdir" "$name:$remote_folder/$(dirname "$workdir")/" --worker=0
}

delete() {
    if [[ -z $yes && -z $dry_run ]]; then
        read -rp "Delete $name with all that is on its disks? Type its name: " answer
        [[ $answer == "$name" ]] || fail "not deleted"
    fi
    if [[ -n $queued ]]; then
        tpu queued-resources delete "$name" --force --quiet
    else
        tpu tpu-vm delete "$name" --quiet
    fi
}

parse "$@"
if [[ -z $command ]]; then
    usage >&2
    exit 1
fi
[[ $command =~ ^(create|status|install|run|start|logs|stop|fetch|push|delete)$ ]] || fail "no command $command (--help)"
[[ -n $name ]] || fail "which TPU? e.g. launch/tpu_vm.sh $command my-tpu"
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "$name: a name has small letters, digits and - only"
[[ -n $dry_run ]] || command -v gcloud > /dev/null || fail "gcloud is not there: https://cloud.google.com/sdk/docs/install"
"$command"
