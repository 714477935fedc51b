"""The launchers: the commands they print and run, and what they do about preemptions."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from jaxclf.config import loading

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
CONFIG = "configs/quickstart.py:smoke"
WORKDIR = "/mnt/jaxclf/runs/one"
TRAINING = ("--config", CONFIG, "--workdir", WORKDIR)
BUCKET = ("--bucket", "my-bucket")
ODD = """it's a "text" & $HOME \\ $(date) @NAME@"""
OVERRIDES = ("--", "--config.train.steps=7", f"--config.data.text={ODD}")
POD = ("--zone", "us-east5-a", "--accelerator-type", "v5p-64", *TRAINING)
IMAGE = ("--image", "us-docker.pkg.dev/project/images/jaxclf:v1")
SLICE = ("--accelerator", "tpu-v5p-slice", "--topology", "2x4x4")
GKE = (*IMAGE, *SLICE, *BUCKET, *TRAINING)
COMMANDS = [
    *(
        ("tpu_pod.sh", command, *POD)
        for command in "create wait install start restart watch status logs stop delete".split()
    ),
    *(("gke.sh", command, *GKE) for command in "apply status logs delete".split()),
    ("slurm.sh", *TRAINING),
]
TRAINERS = [
    *(("tpu_pod.sh", command, *POD) for command in ("start", "restart", "watch")),
    ("slurm.sh", *TRAINING),
]


def ids(words):
    return "-".join(words[:2]) if words[0] != "slurm.sh" else words[0]


class Machine:
    """A home and a PATH of our own, on which `program` puts stand-ins that log their calls."""

    def __init__(self, folder: Path):
        self.home = folder / "home"
        self.programs = folder / "programs"
        self.calls = folder / "calls"
        self.home.mkdir()
        self.programs.mkdir()
        self.environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(folder),
            "HF_TOKEN": "hf_secret",
        }

    def program(self, name: str, body: str = "", folder: Path | None = None) -> None:
        path = (folder or self.programs) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{self.calls}\n{body}\n')
        path.chmod(0o755)

    def called(self, pattern: str = "") -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if re.search(pattern, line)]

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["bash", LAUNCH / script, *words],
            env=self.environment | environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "hf_secret" not in done.stdout + done.stderr
        return done

    def would_run(self, script: str, *words: str) -> list[list[str]]:
        at = words.index("--") if "--" in words else len(words)
        done = self.run(script, *words[:at], "--dry-run", *words[at:])
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines
        assert all(line.startswith("+ ") for line in lines)
        return [shlex.split(line.removeprefix("+ ")) for line in lines]


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def remote(command: list[str]) -> list[str]:
    """The words of what a command has run elsewhere, as the shell there reads them."""
    given = [word for word in command if word.startswith("--command=")]
    return shlex.split(given[0].removeprefix("--command=")) if given else command


def trained(commands: list[list[str]]) -> list[str]:
    """The arguments of the one training among the commands."""
    (words,) = [words for words in map(remote, commands) if "jaxclf.train" in words]
    at = words.index("jaxclf.train")
    assert words[at - 2 : at] == ["python", "-m"]
    return words[at + 1 :]


def accepted(arguments: list[str]):
    """The config that jaxclf.train makes of its arguments."""
    assert arguments[0] == "--distributed"
    parser = argparse.ArgumentParser()
    loading.add_arguments(parser)
    options = loading.parse(parser, arguments[1:])
    assert options.workdir == WORKDIR
    return loading.load(str(ROOT / options.config), options.overrides)


# -- what is printed


@pytest.mark.parametrize("words", COMMANDS, ids=ids)
def test_a_dry_run_prints_commands_and_runs_none(machine, words):
    for name in ("gcloud", "kubectl", "sbatch", "git", "sleep"):
        machine.program(name, "exit 1")
    assert machine.would_run(*words)
    assert not machine.called()


@pytest.mark.parametrize("words", TRAINERS, ids=ids)
def test_the_training_gets_its_arguments_unchanged(machine, words):
    config = accepted(trained(machine.would_run(*words, *OVERRIDES)))
    assert config.model.name == "llama_smoke"
    assert config.train.steps == 7
    assert config.data.text == ODD


def test_the_training_needs_no_further_arguments(machine):
    arguments = trained(machine.would_run("tpu_pod.sh", "start", *POD))
    assert accepted(arguments) == loading.load(str(ROOT / CONFIG))


@pytest.mark.parametrize("command", ["install", "start", "stop", "status"])
def test_workers_are_reached_all_at_once(machine, command):
    commands = machine.would_run("tpu_pod.sh", command, *POD)
    reaching = [words for words in commands if {"ssh", "scp"} & set(words)]
    assert reaching
    assert all("--worker=all" in words for words in reaching)


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v5p-64", "v2-alpha-tpuv5"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v6e-64", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_a_slice_is_asked_for_with_the_runtime_of_its_type(machine, kind, runtime):
    words = ("--name", "mine", "--zone", "z", "--project", "p", "--accelerator-type", kind)
    (command,) = machine.would_run("tpu_pod.sh", "create", *words, "--spot")
    assert command[:6] == "gcloud compute tpus queued-resources create mine".split()
    expected = f"--zone=z --project=p --node-id=mine --accelerator-type={kind} --spot"
    assert {*expected.split(), f"--runtime-version={runtime}"} <= set(command)


def test_restarting_replaces_the_slice_and_starts_the_training_on_it(machine):
    commands = [" ".join(words) for words in machine.would_run("tpu_pod.sh", "restart", *POD)]
    steps = (
        "resources delete",
        "resources create",
        "describe",
        " scp ",
        "install",
        "worker.sh start",
    )
    found = []
    for command in commands:
        found += [step for step in steps if step in command and step not in found[-1:]]
    assert found == ["describe", *steps]


def test_a_bucket_is_mounted_on_the_workers_where_one_is_given(machine):
    for given, installs in (((), 0), (BUCKET, 1)):
        commands = machine.would_run("tpu_pod.sh", "install", *POD, *given)
        assert remote(commands[-1]).count("--gcsfuse") == installs
        (command,) = machine.would_run("tpu_pod.sh", "start", *POD, *given)
        assert remote(command)[:3] == ["bash", "jaxclf/worker.sh", "start"]
        assert tuple(remote(command)[3:5]) == (given or ("python", "-m"))


def test_slurm_starts_one_process_a_gpu_and_warns_it_in_time(machine):
    words = ("--nodes", "2", "--gpus-per-node", "4", "--grace-seconds", "300", *TRAINING)
    (command,) = machine.would_run("slurm.sh", *words)
    expected = "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --signal=TERM@300 --requeue"
    assert {*expected.split(), str(LAUNCH / "slurm.sbatch")} <= set(command)


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke.sh", "slurm.sh"])
def test_help_describes_every_option(machine, script):
    text = machine.run(script, "--help").stdout
    known = re.findall(r"^known\+?=\"(.*)\"$", (LAUNCH / script).read_text(), re.MULTILINE)
    assert known
    assert [name for name in " ".join(known).split() if f"--{name}" not in text] == []


# -- wrong arguments


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tpu_pod.sh"], "expected create, wait"),
        (["tpu_pod.sh", "crate"], "'crate': no such command"),
        (["tpu_pod.sh", "create"], "--zone: not given"),
        (["tpu_pod.sh", "start", *POD[:-2]], "--workdir: not given"),
        (["tpu_pod.sh", "start", *POD[:-1], "runs/x"], "runs/x: expected an absolute path"),
        (
            ["tpu_pod.sh", "start", *POD[:-1], "gs://their-bucket/runs/x"],
            "mount the bucket as one: --bucket their-bucket --workdir /mnt/jaxclf/runs/x",
        ),
        (["tpu_pod.sh", "start", *POD[:-1], "gs://"], "--bucket NAME --workdir /mnt/jaxclf/FOLDER"),
        (["tpu_pod.sh", "start", *POD[:-1], "/tmp/x", *BUCKET], "expected a folder in /mnt/jaxclf"),
        (["tpu_pod.sh", "start", *POD, "--bucket", "gs://b"], "gs://b: expected the name alone"),
        (["tpu_pod.sh", "start", *POD, "--config", "quickstart"], "expected FILE.py[:VARIANT"),
        (["tpu_pod.sh", "start", *POD, "--config.train.steps=2"], "stands after --"),
        (["tpu_pod.sh", "start", *POD, "--name", "My_Run"], "expected at most 40 small letters"),
        (["tpu_pod.sh", "start", *POD, "--hf-token-secret"], "--hf-token-secret VALUE"),
        (["tpu_pod.sh", "create", *POD, "--accelerator-type", "v5p"], "such as v5p-64"),
        (["tpu_pod.sh", "create", *POD, "--accelerator-type", "v5e-16"], "v5litepod-16"),
        (["tpu_pod.sh", "create", *POD, "--spot", "--reserved"], "exclude each other"),
        (["gke.sh", "submit"], "'submit': no such command"),
        (["gke.sh", "apply", *GKE[2:]], "--image: not given"),
        (["gke.sh", "apply", *GKE[:-2]], "--workdir: not given"),
        (["gke.sh", "apply", *GKE[:-1], "gs://b/x"], "--bucket b --workdir /mnt/jaxclf/x"),
        (["gke.sh", "apply", *GKE[:-1], "/home/x"], "expected a folder in /mnt/jaxclf"),
        (["gke.sh", "apply", *IMAGE, *SLICE, *TRAINING], "--bucket: not given"),
        (["gke.sh", "apply", *GKE, "--claim", "disk"], "exclude each other"),
        (["gke.sh", "apply", *GKE, "--max-restarts", "no"], "no: expected a whole number"),
        (["gke.sh", "apply", *GKE, "--accelerator", "v5p"], "expected tpu-v4-podslice"),
        (["gke.sh", "apply", *GKE, "--topology", "4x8"], "tpu-v5p-slice has 3, such as 2x4x4"),
        (["gke.sh", "apply", *GKE, "--topology", "4by4"], "numbers of chips with x between"),
        (["gke.sh", "apply", *GKE, "--topology", "3x4x4"], "3 chips on a side"),
        (["gke.sh", "apply", *GKE, "--topology", "1x1x2"], "2 chips do not fill hosts of 4 chips"),
        (["gke.sh", "apply", *GKE, "--", "--config.a=1\n2"], "line break"),
        (["slurm.sh", "--config", CONFIG], "--workdir: not given"),
        (["slurm.sh", *TRAINING[:-1], "gs://b/x"], "expected a folder on a disk that all nodes"),
        (["slurm.sh", *TRAINING, "--nodes", "0"], "0: expected a whole number from 1 up"),
    ],
)
def test_wrong_arguments_are_refused_with_a_remedy(machine, words, told):
    done = machine.run(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert not done.stdout


# -- the manifest


def manifest(machine: Machine, *words: str) -> dict:
    done = machine.run("gke.sh", "manifest", *words)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def job_of(found: dict) -> dict:
    (job,) = found["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def pod_of(found: dict) -> dict:
    return job_of(found)["template"]["spec"]


@pytest.mark.parametrize(
    ("accelerator", "topology", "label", "hosts"),
    [
        ("tpu-v5p-slice", "4x4x2", "2x4x4", 8),
        ("tpu-v5p-slice", "2x2x1", "2x2x1", 1),
        ("tpu-v4-podslice", "4x4x4", "4x4x4", 16),
        ("tpu-v5-lite-podslice", "4x4", "4x4", 4),
        ("tpu-v6e-slice", "8x4", "4x8", 8),
    ],
)
def test_a_job_has_a_pod_for_each_host_of_the_slice(machine, accelerator, topology, label, hosts):
    words = ("--accelerator", accelerator, "--topology", topology)
    found = manifest(machine, *GKE, *words)
    assert "@" not in str(found)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (job_of(found)["completions"], job_of(found)["parallelism"]) == (hosts, hosts)
    pod = pod_of(found)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": label,
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_a_host_of_eight_chips_is_one_pod(machine):
    words = ("--accelerator", "tpu-v5-lite-podslice", "--topology", "2x4", "--chips-per-host", "8")
    assert job_of(manifest(machine, *GKE, *words))["completions"] == 1


def test_a_pods_command_is_the_training_with_its_arguments_unchanged(machine):
    (container,) = pod_of(manifest(machine, *GKE, *OVERRIDES))["containers"]
    # Kubernetes reads $$ as $, and would put a variable in the place of $(date).
    words = [word.replace("$$", "$") for word in container["command"]]
    assert all("$(" not in word.replace("$$", "") for word in container["command"])
    assert accepted(trained([words])).data.text == ODD


def test_a_jobset_restarts_but_for_what_fails_every_time(machine):
    found = manifest(machine, *GKE, "--max-restarts", "9", "--grace-seconds", "900")
    (rule,) = job_of(found)["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 3, 5]
    assert rule["onExitCodes"]["containerName"] == pod_of(found)["containers"][0]["name"]
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 9
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    # Both are needed for a pod failure policy, and for one lost pod to fail the job.
    assert (job_of(found)["backoffLimit"], pod_of(found)["restartPolicy"]) == (0, "Never")
    assert pod_of(found)["terminationGracePeriodSeconds"] == 900


@pytest.mark.parametrize("secret", ["", "hub-token"])
def test_a_pod_takes_the_token_from_a_secret(machine, secret):
    given = ("--hf-token-secret", secret) if secret else ()
    (container,) = pod_of(manifest(machine, *GKE, *given))["containers"]
    (variable,) = container["env"]
    assert variable["name"] == "HF_TOKEN"
    reference = variable["valueFrom"]["secretKeyRef"]
    assert (reference["name"], reference["optional"]) == (secret or "none", not secret)


@pytest.mark.parametrize("given", ["bucket", "claim"])
def test_all_pods_share_a_folder(machine, given):
    found = manifest(machine, *IMAGE, *SLICE, *TRAINING, f"--{given}", "1.my-disk")
    pod = pod_of(found)
    (volume,) = pod["volumes"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount == {"name": volume.pop("name"), "mountPath": "/mnt/jaxclf"}
    annotations = job_of(found)["template"]["metadata"]["annotations"]
    if given == "claim":
        assert volume == {"persistentVolumeClaim": {"claimName": "1.my-disk"}}
        assert annotations["gke-gcsfuse/volumes"] == "false"
    else:
        assert annotations["gke-gcsfuse/volumes"] == "true"
        assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
        attributes = volume["csi"]["volumeAttributes"]
        assert attributes["bucketName"] == "1.my-disk"
        options = {"implicit-dirs", "rename-dir-limit=200000", "metadata-cache:ttl-secs:0"}
        assert set(attributes["mountOptions"].split(",")) == options
    # Kubernetes takes annotations for text alone.
    assert all(isinstance(value, str) for value in annotations.values())


def test_the_pods_have_the_service_account_that_may_write_to_the_bucket(machine):
    assert pod_of(manifest(machine, *GKE))["serviceAccountName"] == "default"
    found = manifest(machine, *GKE, "--service-account", "trainer")
    assert pod_of(found)["serviceAccountName"] == "trainer"


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "words",
    [
        (*BUCKET, *OVERRIDES),
        ("--claim", "disk", "--hf-token-secret", "hub-token", "--service-account", "trainer"),
    ],
)
def test_jobset_and_kubernetes_know_every_field(machine, words, version):
    found = manifest(machine, *IMAGE, *SLICE, *TRAINING, *words)
    # The models check types and drop what they do not know; below `template` a JobSet is a Job,
    # whose schema is stricter.
    assert models.JobsetV1alpha2JobSet.from_dict(found).to_dict() == found
    (job,) = found["spec"]["replicatedJobs"]
    alone = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "alone"}}
    kubernetes_validate.validate(alone | job["template"], version, strict=True)


def test_the_manifest_is_what_is_applied(machine):
    machine.program("kubectl", 'cat >"$HOME/applied"')
    assert machine.run("gke.sh", "apply", *GKE).returncode == 0
    assert yaml.safe_load((machine.home / "applied").read_text()) == manifest(machine, *GKE)


# -- preemptions on a worker


needs_linux = pytest.mark.skipif(
    not all(map(shutil.which, ("flock", "pkill", "setsid"))), reason="workers are Linux machines"
)


@pytest.fixture
def worker(machine) -> Iterator[Machine]:
    """A worker with the project installed: gcloud runs the commands for all workers on it."""
    folder = machine.home / "jaxclf"
    folder.mkdir()
    shutil.copy(LAUNCH / "worker.sh", folder)
    (folder / "configs").mkdir()
    machine.program(
        "gcloud",
        """case $* in
            *secrets*) echo hf_secret ;;
            *) for word; do [[ $word != --command=* ]] || bash -c "${word#--command=}"; done ;;
        esac""",
    )
    yield machine
    on_worker(machine, "stop").communicate(timeout=30)


def trains(worker: Machine, body: str) -> None:
    worker.program("python", body, worker.home / "jaxclf" / "venv" / "bin")


def on_worker(worker: Machine, *words: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", worker.home / "jaxclf" / "worker.sh", *words],
        env=worker.environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@needs_linux
@pytest.mark.parametrize(
    ("codes", "starts", "last"), [("75 75 0", 3, 0), ("3 0", 1, 3), ("75 5 0", 2, 5), ("0 0", 1, 0)]
)
def test_a_training_is_started_again_after_preemptions_alone(worker, codes, starts, last):
    trains(worker, f'codes=({codes}); exit "${{codes[$(wc -l <{worker.calls}) - 1]}}"')
    loop = on_worker(worker, "run", "python", "-m", "jaxclf.train", "a b")
    loop.communicate(timeout=30)
    assert loop.returncode == last
    assert worker.called() == ["python -m jaxclf.train a b"] * starts
    assert (worker.home / "jaxclf" / "exit_code").read_text() == f"{last}\n"


# Ends by SIGTERM as the training does: not before it has saved.
SAVES = """trap 'echo saved >>"$HOME/saved"; exit 75' TERM
touch "$HOME/started"; while true; do read -rt 0.05 <> <(:) || true; done"""


@needs_linux
def test_stopping_lets_the_training_save_and_starts_it_no_more(worker):
    trains(worker, SAVES)
    assert worker.run("tpu_pod.sh", "start", *POD).returncode == 0
    until((worker.home / "started").exists)
    assert worker.run("tpu_pod.sh", "start", *POD).stdout == "already running\n"
    assert worker.run("tpu_pod.sh", "stop", *POD).stdout == "ended 75\n"
    assert (worker.home / "saved").read_text() == "saved\n"
    assert len(worker.called("^python")) == 1


@needs_linux
def test_a_machine_that_shuts_down_ends_the_loop_too(worker):
    trains(worker, SAVES)
    loop = on_worker(worker, "run", "python", start_new_session=True)
    until((worker.home / "started").exists)
    os.killpg(loop.pid, signal.SIGTERM)
    loop.communicate(timeout=30)
    assert loop.returncode == 75
    assert len(worker.called("^python")) == 1


@needs_linux
def test_a_started_training_gets_its_arguments_and_the_token_and_tells_how_it_ended(worker):
    trains(worker, 'printf "%s\\n" "${@: -1}" "${HF_TOKEN-}" >"$HOME/given"; exit 4')
    given = ("--hf-token-secret", "hub", "--", f"--config.data.text={ODD}")
    assert worker.run("tpu_pod.sh", "start", *POD, *given).returncode == 0
    done = worker.home / "jaxclf" / "exit_code"
    until(lambda: done.exists() and done.read_text())
    # The lock is released just after the exit code is written.
    until(lambda: on_worker(worker, "status").communicate(timeout=30)[0] != "running\n")
    assert worker.run("tpu_pod.sh", "status", *POD, HF_TOKEN="").returncode == 0
    assert on_worker(worker, "status").communicate(timeout=30)[0] == "ended 4\n"
    assert (worker.home / "given").read_text() == f"--config.data.text={ODD}\nhf_secret\n"
    assert not worker.called("hf_secret")
    assert "hf_secret" not in (worker.home / "jaxclf" / "train.log").read_text()
    assert worker.called("secrets versions access latest --secret=hub")


# -- the bucket on a worker


def mounted(worker: Machine, source: str = "", answers: bool = True) -> None:
    """What is mounted at /mnt/jaxclf already, and whether it still answers."""
    worker.program("sudo")
    worker.program("gcsfuse")
    worker.program("findmnt", f'echo "{source}"; [[ -n "{source}" ]]')
    worker.program("ls", f"exit {0 if answers else 2}")


OPTIONS = "--implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0"


@needs_linux
@pytest.mark.parametrize(
    ("source", "answers", "does"),
    [
        ("", True, ["mkdir", "gcsfuse"]),
        ("my-bucket", True, []),
        ("my-bucket", False, ["umount", "mkdir", "gcsfuse"]),
        ("other-bucket", True, ["umount", "mkdir", "gcsfuse"]),
    ],
)
def test_the_bucket_is_mounted_before_the_training_starts(worker, source, answers, does):
    mounted(worker, source, answers)
    trains(worker, "exit 0")
    assert worker.run("tpu_pod.sh", "start", *POD, *BUCKET).returncode == 0
    until(lambda: worker.called("^python"))
    calls = worker.called("mkdir|umount|^gcsfuse|^python")
    assert [re.search("mkdir|umount|gcsfuse|python", call)[0] for call in calls] == [
        *does,
        "python",
    ]
    expected = f"gcsfuse {OPTIONS} my-bucket /mnt/jaxclf"
    assert worker.called("^gcsfuse") == [expected] * ("gcsfuse" in does)


@needs_linux
def test_without_the_bucket_no_training_starts(worker):
    mounted(worker)
    worker.program("gcsfuse", "exit 1")
    trains(worker, "exit 0")
    assert worker.run("tpu_pod.sh", "start", *POD, *BUCKET).returncode == 1
    assert on_worker(worker, "status").communicate(timeout=30)[0] == "idle\n"
    assert not worker.called("^python")


@needs_linux
@pytest.mark.parametrize("asked", [False, True])
def test_installing_brings_gcsfuse_where_it_is_asked_for(worker, asked):
    folder = worker.home / "jaxclf"
    (folder / "configs").rmdir()
    for name in ("curl", "sudo"):
        worker.program(name)
    worker.program("uv", folder=folder / "uv")
    trains(worker, f"echo {worker.home}")
    words = ["--gcsfuse"] * asked
    assert on_worker(worker, "install", *words, "jaxclf.tar.gz").wait(timeout=30) == 0
    assert len(worker.called(r"curl .*gcsfuse_[\d.]+_amd64.deb$")) == asked
    assert len(worker.called("sudo apt-get .* install .*gcsfuse.deb$")) == asked
    (installed,) = worker.called("^uv pip install")
    assert installed.endswith(f"jaxclf[tpu] @ file://{folder}/jaxclf.tar.gz")
    assert (folder / "configs").resolve() == worker.home


# -- preemptions of the slice


def watched(machine: Machine, *looks: str) -> subprocess.CompletedProcess:
    """Watch a slice that is at each look as told: its state, or `ended 0` and the like if active.

    Where a look is followed by no other, it stays so.
    """
    (machine.home / "looks").write_text("".join(f"{look}\n" for look in looks))
    machine.program("sleep")
    machine.program("git")
    machine.program(
        "gcloud",
        """look=$(head -n 1 "$HOME/looks")
        case $* in
            *"queued-resources describe"*)
                if (($(wc -l <"$HOME/looks") > 1)) && [[ -e $HOME/looked ]]; then
                    sed -i 1d "$HOME/looks"
                    look=$(head -n 1 "$HOME/looks")
                fi
                touch "$HOME/looked"
                case $look in
                    NOT_FOUND) echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1 ;;
                    UNKNOWN) echo "ERROR: no network" >&2; exit 1 ;;
                    [A-Z]*) echo "$look" ;;
                    *) echo ACTIVE ;;
                esac ;;
            *"tpu-vm describe"*) echo READY ;;
            *"worker.sh status"*) echo "$look"; echo "$look" ;;
        esac""",
    )
    return machine.run("tpu_pod.sh", "watch", *POD)


STARTS = "worker.sh start .*jaxclf.train"


def test_a_lost_slice_is_replaced_until_the_training_has_ended(machine):
    done = watched(
        machine, "running", *("SUSPENDED",) * 2, "PROVISIONING", "running", "running", "ended 0"
    )
    assert done.returncode == 0, done.stderr
    assert len(machine.called("queued-resources delete .*--force")) == 1
    assert len(machine.called("queued-resources create")) == 1
    assert len(machine.called(" scp ")) == 1
    assert len(machine.called(STARTS)) == 1


def test_a_slice_that_does_not_exist_is_created(machine):
    done = watched(machine, "NOT_FOUND", "NOT_FOUND", "running", "ended 0")
    assert done.returncode == 0, done.stderr
    assert not machine.called("queued-resources delete")
    assert len(machine.called("queued-resources create")) == 1


def test_nothing_is_deleted_while_the_state_is_unknown(machine):
    assert watched(machine, "UNKNOWN", "UNKNOWN", "running", "ended 0").returncode == 0
    assert not machine.called("queued-resources (delete|create)")


def test_a_worker_that_was_shut_down_is_started_again(machine):
    assert watched(machine, "ended 75", "idle", "running", "ended 0").returncode == 0
    assert len(machine.called(STARTS)) == 2


def test_a_new_slice_gets_the_project_first(machine):
    assert watched(machine, "bare", "running", "ended 0").returncode == 0
    assert len(machine.called(" scp ")) == 1
    assert len(machine.called(STARTS)) == 1


def test_a_failure_that_a_lost_slice_explains_is_not_the_trainings(machine):
    looks = ("ended 134", "SUSPENDED", "SUSPENDED", "running", "running", "ended 0")
    assert watched(machine, *looks).returncode == 0


def test_a_failure_of_the_training_ends_the_watch_with_its_code(machine):
    assert watched(machine, "running", "ended 3").returncode == 3
    assert not machine.called("queued-resources (delete|create)")


def test_a_slice_in_use_is_not_replaced(machine):
    machine.program("gcloud", 'case $* in *"queued-resources describe"*) echo ACTIVE ;; esac')
    done = machine.run("tpu_pod.sh", "restart", *POD)
    assert done.returncode == 1
    assert "`delete` it first" in done.stderr
    assert not machine.called("queued-resources delete")


# -- preemptions of a Slurm job


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (5, False), (0, False)])
def test_a_preempted_job_goes_back_into_the_queue(machine, code, requeued):
    machine.program("srun", f"exit {code}")
    machine.program("scontrol")
    words = ("python", "-m", "jaxclf.train", "a b")
    done = machine.run("slurm.sbatch", *words, SLURM_JOB_ID="17", SLURM_CPUS_PER_TASK="8")
    assert done.returncode == code
    assert machine.called("scontrol") == ["scontrol requeue 17"] * requeued
    (call,) = machine.called("srun")
    assert call.endswith("--cpus-per-task=8 python -m jaxclf.train a b")


@pytest.mark.parametrize(("refusals", "calls"), [(2, 3), (99, 10)])
def test_a_controller_that_is_away_is_asked_again(machine, refusals, calls):
    machine.program("srun", "exit 75")
    machine.program("sleep")
    machine.program("scontrol", f"(($(grep -c ^scontrol {machine.calls}) > {refusals}))")
    done = machine.run("slurm.sbatch", "python", SLURM_JOB_ID="17")
    assert done.returncode == 75
    assert machine.called("scontrol") == ["scontrol requeue 17"] * calls
    assert ("the same launch/slurm.sh resumes it" in done.stdout) == (refusals > calls)


# -- the scripts themselves


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_no_complaints():
    scripts = sorted(LAUNCH.glob("*.s[bh]*"))
    assert scripts
    done = subprocess.run(
        ["shellcheck", "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
