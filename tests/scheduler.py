"""A SLURM of one node on this machine: munged, slurmctld and slurmd in a separate folder, on loopback alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
SECONDS = 300  # within which whatever a test waits for comes to pass, on a busy machine

# A pre-empted job has a minute to save its work, a requeued one may start after six seconds (SLURM's default is two
# minutes), and the node claims what the scripts ask for. Nothing listens beyond 127.0.0.1.
CONFIGURATION = """\
ClusterName=memsim
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=32768 Gres=gpu:1
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE
PartitionName=sudden Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
"""


@dataclass(frozen=True)
class Job:
    """What `scontrol show job` says of one job."""

    id: str
    state: str
    restarts: int
    exit_code: str  # of the script, and the signal that ended it: "0:0"


@dataclass(frozen=True)
class Scheduler:
    """A running SLURM of one node, with 8 processors, 32 GB and one GPU that it believes in.

    The partition `high` pre-empts `low` (the default one), whose jobs have a minute of grace, and `sudden`, with none.
    """

    folder: Path
    environment: dict[str, str]  # with which its commands reach it

    def call(self, *command: object) -> str:
        """The output of one of SLURM's commands. Raises CalledProcessError."""
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, timeout=SECONDS, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: object) -> str:
        """The number of a job that was put into the queue; the arguments are those of sbatch."""
        return self.call("sbatch", "--parsable", *arguments)

    def job(self, number: str) -> Job:
        """The state of a job."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        said = dict(word.split("=", 1) for word in words if "=" in word)
        return Job(number, said["JobState"], int(said["Restarts"]), said["ExitCode"])

    def wait(self, number: str, *states: str) -> Job:
        """The job once it is in one of the states. Raises AssertionError if it ends in another, or never does."""
        ended = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")

        def arrived() -> bool:
            return self.job(number).state in {*states, *ended}

        until(arrived)
        job = self.job(number)
        assert job.state in states, f"{job}\n{self.logs()}"
        return job

    def cancel_all(self) -> None:
        """Cancels all jobs and waits until they are gone."""
        self.call("scancel", "--user=root")
        assert until(lambda: not self.call("squeue", "--noheader")), f"jobs do not end\n{self.logs()}"

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        return "\n".join("\n".join(log.read_text().splitlines()[-30:]) for log in sorted(self.folder.glob("*.log")))


def until(holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Whether something holds at last, for which it waits some seconds."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.2)
    return held


def install() -> None:
    """Installs Debian's packages if SLURM is not there. Raises AssertionError if that cannot be done."""
    if all(shutil.which(name, path=_path()) for name in PROGRAMS):
        return
    can = os.geteuid() == 0 and shutil.which("apt-get")
    assert can, "slurm-wlm and munge are not installed: install them, or run this as root on Debian or Ubuntu"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]):
        done = subprocess.run(["apt-get", *words], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"apt-get {' '.join(words)}: {done.stdout}{done.stderr}"


@contextmanager
def running(folder: Path) -> Iterator[Scheduler]:
    """A scheduler that is ready for jobs; everything that it started is gone afterwards. Needs root."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    values = dict(zip(("controller_port", "node_port"), _free_ports(2), strict=True))
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=socket.gethostname(), **values))
    (folder / "gres.conf").write_text("Name=gpu Count=1 File=/dev/null\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(configuration)}
    scheduler = Scheduler(folder, environment)
    options = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    files = [f"--{option}={folder}/munge.{ending}" for option, ending in options.items()]
    with ExitStack() as stack:
        stack.enter_context(_daemon(["munged", "--foreground", "--force", *files], environment))
        assert until((folder / "munge.socket").exists, 60), "munged does not start"
        stack.enter_context(_daemon(["slurmctld", "-D"], environment))
        stack.enter_context(_daemon(["slurmd", "-D", "-N", "localhost"], environment))

        def ready() -> bool:
            words = ["sinfo", "--noheader", "--format=%T"]
            done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
            return set(done.stdout.split()) == {"idle"}

        stack.callback(scheduler.cancel_all)
        assert until(ready, 60), f"no node is ready\n{scheduler.logs()}"
        yield scheduler


@contextmanager
def _daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _path() -> str:
    """$PATH with the folder of daemons, which a user's may lack."""
    return os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
