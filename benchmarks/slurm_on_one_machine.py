"""launch/slurm.sh on a real Slurm: `python benchmarks/slurm_on_one_machine.py`.

Starts a controller and two nodes of one core each in a scratch folder, runs the smoke variant of
the quickstart on them with one process a node, and interrupts it in the ways a cluster does. Prints
the table of docs/how-to/clusters.md, stops all that it started, and ends with 1 if a case went
wrong. Takes about half an hour on two cores.

Needs root, which gives each node a host name of its own, and Debian's packages:

    apt-get install --no-install-recommends munge slurm-wlm
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parent.parent
NODES = ("one", "two")
STEPS = 300
ENDLESS = "--config.train.steps=100000"
# A constant learning rate, so that a run that is cut short has the losses of the whole one.
TRAINING = (
    *("--config.train.batch_size=4", "--config.data.limit=8", "--config.train.schedule=constant"),
    *(f"--config.train.steps={STEPS}", "--config.train.save_steps=50"),
)
LONGEST = 600  # seconds for anything that is waited for

# No cgroups, which containers often lack; a GPU is counted, and nobody opens it. A requeued job may
# start after `cred_expire` seconds: Slurm's default is two minutes.
SLURM_CONF = """\
ClusterName=one_machine
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
NodeName=one NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1
NodeName=two NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 Gres=gpu:1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


class Fault(Exception):  # noqa: N818 - what a case found, for its row of the table
    """Something is not as it should be."""


class Slurm:
    """Slurm with its files in this folder; within the block it runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
        }
        self.daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Slurm":
        with contextlib.ExitStack() as reserved:
            sockets = [reserved.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("localhost", 0))
            ports = [each.getsockname()[1] for each in sockets]
        conf = SLURM_CONF.format(folder=self.folder, ports=ports)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text("Name=gpu Count=1 File=/dev/null\n")
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(NODES)}\n")
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        names = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        files = [f"--{option}-file={names[option]}" for option in ("pid", "log", "seed")]
        try:
            self._daemon(
                *("munged", "--foreground", "--force", f"--key-file={key}"),
                *(f"--socket={names['socket']}", *files),
            )
            until(names["socket"].exists, "munged starts", 60)
            self.start_controller()
            for node in NODES:
                # JAX calls the first node by its name, so the nodes must know each other.
                own = f"hostname {node} && mount --bind hosts /etc/hosts && exec slurmd -D"
                self._daemon("unshare", "--uts", "--mount", "bash", "-c", own)
            until(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "start", 60)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _daemon(self, *command: str) -> subprocess.Popen:
        with (self.folder / "daemons.log").open("a") as log:
            started = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        self.daemons.append(started)
        return started

    def start_controller(self) -> None:
        """It goes on with what it knew before."""
        self.controller = self._daemon("slurmctld", "-D")

    def stop_controller(self) -> None:
        self.controller.terminate()
        self.controller.wait(60)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Fault):
            self.empty()
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(60)

    def ask(self, *command: str) -> str:
        """What the command prints; empty where it fails."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        return "" if done.returncode else done.stdout.strip()

    def empty(self) -> None:
        """Cancel all jobs, and wait until their processes have ended."""
        self.ask("scancel", "--user=root")
        until(lambda: not self.ask("squeue", "-h"), "the canceled jobs end")

    def submit(self, workdir: Path, *words: str, options: tuple[str, ...] = ()) -> "Job":
        shape = ("--nodes", "2", "--gpus-per-node", "1", "--cpus-per-task", "1")
        config = ("--config", "configs/quickstart.py:smoke", "--workdir", str(workdir))
        said = self.ask(
            *("bash", str(REPOSITORY / "launch" / "slurm.sh"), *shape, *options, *config),
            *("--", *TRAINING, *words),
        )
        if not (number := re.search(r"Submitted batch job (\d+)", said)):
            raise Fault("launch/slurm.sh submits nothing")
        return Job(self, int(number[1]), workdir)

    def ended(self) -> list[tuple[int, str]]:
        """Each stretch that has ended, in order: its job, and the state and code Slurm gave it."""
        path = self.folder / "completed"
        found = re.findall(
            r"JobId=(\d+) .* JobState=(\w+) .* ExitCode=(\S+)",
            path.read_text() if path.exists() else "",
        )
        return [
            (int(job), "requeued" if state == "PENDING" else f"{state} {code}")
            for job, state, code in found
        ]


class Job:
    """A training that was submitted."""

    def __init__(self, slurm: Slurm, number: int, workdir: Path):
        self.slurm, self.number, self.workdir = slurm, number, workdir

    def log(self) -> str:
        path = self.slurm.folder / f"jaxclf-{self.number}.log"
        return path.read_text() if path.exists() else ""

    def stretches(self) -> list[str]:
        return [seen for job, seen in self.slurm.ended() if job == self.number]

    def reaches(self, step: int) -> None:
        until(lambda: max(losses(self.workdir), default=0) >= step, f"step {step} is reached")

    def ends(self, *expected: str, within: float = LONGEST) -> None:
        """Wait for the end of as many stretches; they must have ended so."""

        def over() -> bool:
            found = self.stretches()
            return len(found) >= len(expected) or found != list(expected[: len(found)])

        until(over, f"ends as {', '.join(expected)}", within)
        check(self.stretches() == list(expected), f"expected {', '.join(expected)}")

    def saved(self) -> int:
        """The step at which it was stopped and saved, by its own word."""
        found = re.findall(r"stopped by SIGTERM; saved step (\d+) of", self.log())
        check(len(found) > 0, "nothing was saved")
        return int(found[-1])

    def resumed(self) -> int:
        found = re.findall(r"resumed at step (\d+)", self.log())
        check(len(found) > 0, "did not resume")
        return int(found[-1])

    def process(self, index: int) -> int:
        """The process id of one of the training's processes."""
        wanted = {f"SLURM_JOB_ID={self.number}", f"SLURM_PROCID={index}"}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_text(errors="replace").split("\0")
                # The batch script and srun have the variables too, with those of process 0.
                is_python = (folder / "exe").resolve().name.startswith("python")
                if wanted <= set(variables) and is_python:
                    return int(folder.name)
        raise Fault(f"process {index} is not there")


def until(happened: Callable[[], object], what: str, seconds: float = LONGEST) -> None:
    end = time.monotonic() + seconds
    while not happened():
        check(time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.2)


def check(holds: bool, what: str) -> None:
    if not holds:
        raise Fault(what)


def losses(workdir: Path) -> dict[int, float]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = map(json.loads, lines)
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def same(workdir: Path, whole: Path) -> str:
    """Check that nobody can tell this run from the uninterrupted one."""
    check(losses(workdir) == losses(whole), "the losses are not those of the uninterrupted run")
    evals = [json.loads((each / "report.json").read_text())["eval"] for each in (workdir, whole)]
    check(evals[0] == evals[1], "the scores are not those of the uninterrupted run")
    answers = [(each / "predictions.jsonl").read_bytes() for each in (workdir, whole)]
    check(answers[0] == answers[1], "the answers are not those of the uninterrupted run")
    return "losses, scores and answers as without it"


# -- the cases: each says what it found, or raises Fault

Case = Callable[[Slurm, Path, Path], str]


def to_its_end(slurm: Slurm, workdir: Path, whole: Path) -> str:
    slurm.submit(whole).ends("COMPLETED 0:0")
    check(sorted(losses(whole)) == list(range(1, STEPS + 1)), "steps are missing")
    return f"{STEPS} steps, a report"


def _goes_on(job: Job, whole: Path, first: str = "requeued") -> str:
    """A job that was stopped has gone back into the queue and comes to the same end."""
    job.ends(first, "COMPLETED 0:0")
    saved = job.saved()
    check(job.resumed() == saved, f"saved step {saved} and resumed at {job.resumed()}")
    return f"saved step {saved} and resumed there; {same(job.workdir, whole)}"


def requeued(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    job.reaches(STEPS // 3)
    slurm.ask("scontrol", "requeue", str(job.number))
    return _goes_on(job, whole)


def signaled(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    job.reaches(STEPS // 3)
    slurm.ask("scancel", "--signal=TERM", str(job.number))
    return _goes_on(job, whole)


def preempted(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    job.reaches(STEPS // 3)
    slurm.ask(
        *("sbatch", "--partition=high", "--nodes=2", "--ntasks-per-node=1", "--output=/dev/null"),
        *("--wrap", "sleep 5"),
    )
    return _goes_on(job, whole, "PREEMPTED 0:0")


def controller_away(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    job.reaches(STEPS // 3)
    slurm.stop_controller()
    for index in (0, 1):
        os.kill(job.process(index), signal.SIGTERM)
    until(lambda: "Exited with exit code 75" in job.log(), "the processes save")
    time.sleep(30)
    slurm.start_controller()
    return _goes_on(job, whole)


def stopped_early(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    until(workdir.exists, "the training starts")
    slurm.ask("scancel", "--signal=TERM", str(job.number))
    return _goes_on(job, whole)


def out_of_time(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir, ENDLESS, options=("--time", "2", "--grace-seconds", "30"))
    job.ends("requeued")
    saved = job.saved()
    until(lambda: f"resumed at step {saved}" in job.log(), "the job resumes")
    job.reaches(saved + 2)
    slurm.empty()
    found, expected = losses(workdir), losses(whole)
    common = found.keys() & expected.keys()
    check(all(found[step] == expected[step] for step in common), "the losses differ")
    return f"saved step {saved} and resumed there; the first {len(common)} losses as without it"


def canceled(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    job.reaches(STEPS // 3)
    slurm.empty()  # scancel, and until the processes have ended, which Slurm's record precedes
    job.ends("CANCELLED 0:0")
    return _submitted_again(job, job.saved(), whole)


def _submitted_again(job: Job, saved: int, whole: Path) -> str:
    again = job.slurm.submit(job.workdir)
    again.ends("COMPLETED 0:0")
    check(again.resumed() >= saved, f"resumed at step {again.resumed()}, not {saved}")
    return f"submitted again, resumed at step {again.resumed()}; {same(job.workdir, whole)}"


def killed(index: int) -> Case:
    def case(slurm: Slurm, workdir: Path, whole: Path) -> str:
        job = slurm.submit(workdir)
        job.reaches(STEPS // 2)
        os.kill(job.process(index), signal.SIGKILL)
        begun = time.monotonic()
        job.ends("FAILED 137:0", within=120)
        seconds = time.monotonic() - begun
        return f"ended {seconds:.0f} s later; {_submitted_again(job, 50, whole)}"

    return case


def node_down(slurm: Slurm, workdir: Path, whole: Path) -> str:
    job = slurm.submit(workdir)
    job.reaches(STEPS // 2)
    slurm.ask("scontrol", "update", "NodeName=two", "State=DOWN", "Reason=lost")
    until(job.stretches, "the job is taken off the node")
    slurm.ask("scontrol", "update", "NodeName=two", "State=RESUME")
    return _goes_on(job, whole, "NODE_FAIL 0:0")


def fails(code: int, *words: str, at: str = "") -> Case:
    """A training that cannot succeed: its own code is the job's, and it is not started again."""

    def case(slurm: Slurm, workdir: Path, whole: Path) -> str:
        slurm.submit(Path(at) if at else workdir, *words).ends(f"FAILED {code}:0")
        return "not started again"

    return case


def corrupt(slurm: Slurm, workdir: Path, whole: Path) -> str:
    shutil.copytree(whole, workdir)
    for path in (workdir / "checkpoints" / str(STEPS)).rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    slurm.submit(workdir, f"--config.train.steps={STEPS + 1}").ends("FAILED 3:0")
    return "not started again"


CASES: dict[str, Case] = {
    "nothing happens": to_its_end,
    "`scontrol requeue`": requeued,
    "`scancel --signal=TERM`": signaled,
    "`scancel --signal=TERM` before the first step": stopped_early,
    "SIGTERM to both while the controller is away": controller_away,
    "preempted by a job of a higher partition": preempted,
    "the end of `--time` is near": out_of_time,
    "`scancel`": canceled,
    "the node of process 1 goes down": node_down,
    "SIGKILL to process 0": killed(0),
    "SIGKILL to process 1": killed(1),
    "a field that does not exist": fails(2, "--config.train.stepz=1"),
    "a corrupt checkpoint": corrupt,
    "a folder that cannot be made": fails(4, at="/proc/run"),
    "a loss that is not finite": fails(5, "--config.train.learning_rate=1e30"),
}


def run(slurm: Slurm, names: list[str]) -> Iterator[tuple[str, str, float, str, bool]]:
    """For each case its name, what Slurm saw, seconds, the result, and whether it is a good one."""
    whole = slurm.folder / "runs" / "whole"
    for number, name in enumerate(names):
        before, begun, good = len(slurm.ended()), time.monotonic(), True
        try:
            result = CASES[name](slurm, slurm.folder / "runs" / str(number), whole)
        except Fault as fault:
            result, good = f"FAULT: {fault}", False
            slurm.empty()
        seconds = time.monotonic() - begun
        trainings = [job for job in slurm.ended()[before:] if _is_training(slurm, job[0])]
        yield name, ", ".join(seen for _, seen in trainings), seconds, result, good


def _is_training(slurm: Slurm, job: int) -> bool:
    return (slurm.folder / f"jaxclf-{job}.log").exists()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORDS", help="the cases with any of these words in them"
    )
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    if os.geteuid() or not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "unshare"))):
        parser.error("needs root, and Debian's packages munge and slurm-wlm")
    first, *others = CASES  # with the first one the others are compared
    names = [
        first,
        *(name for name in others if any(each in name for each in options.only or [""])),
    ]
    if options.keep:
        options.keep.mkdir()
    failed = False
    with (
        contextlib.nullcontext(options.keep)
        if options.keep
        else tempfile.TemporaryDirectory() as scratch,
        Slurm(Path(scratch).resolve()) as slurm,
    ):
        print(f"{slurm.ask('sinfo', '--version')}\n")
        print("| what happens | what Slurm saw | seconds | result |\n|---|---|---|---|")
        for name, seen, seconds, result, good in run(slurm, names):
            print(f"| {name} | {seen} | {seconds:.0f} | {result} |", flush=True)
            failed = failed or not good
    sys.exit(failed)


if __name__ == "__main__":
    main()
