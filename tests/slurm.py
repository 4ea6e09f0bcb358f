"""A Slurm cluster of one node in a directory of its own, accounting included; nothing of the system's own is touched.

Debian's packages slurm-wlm, slurmdbd, munge and mariadb-server have the programs; they need root here.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
SYSTEM = "/usr/sbin:/sbin"
WAIT_S = 60


def missing() -> list[str]:
    """Programs that are not installed."""
    path = f"{os.environ['PATH']}:{SYSTEM}"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def until(holds: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Wait until ``holds``; AssertionError where that takes too long."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what} has not come about within {seconds} s"
        time.sleep(0.2)


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        place: its configuration, state and logs.
        environment: of whoever talks to it.
    """

    place: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def states(self) -> dict[str, str]:
        """The state of every job and task of an array: ``7_1`` → COMPLETED."""
        lines = self.call("sacct", "-XnP", "--format=JobID,State").splitlines()
        return {number: state.split()[0] for number, _, state in (line.partition("|") for line in lines)}

    def start(self, name: str, *options: str) -> None:
        """Start a daemon, which puts itself into the background, and wait for the file that holds its number."""
        subprocess.run([name, *options], env=self.environment, check=True, capture_output=True)
        until(lambda: self._number(name), f"{name}.pid")

    def _number(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.place / f"{name}.pid").read_text())
        return None

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a daemon."""
        process = self._number(name)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
        until(lambda: not _runs(process), f"the end of {name}")
        (self.place / f"{name}.pid").unlink(missing_ok=True)

    def cancel_all(self) -> None:
        """Cancel every job and wait for their ends."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.call("scancel", "--me")
            until(lambda: not self.call("squeue", "-h"), "an empty queue")

    def restart_controller(self) -> None:
        """Kill slurmctld, as a machine that fails does, and start it again."""
        self.stop("slurmctld", signal.SIGKILL)
        self.start("slurmctld")


def _runs(process: int) -> bool:
    """Whether there is such a process, dead ones that nobody has taken notice of aside."""
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    return False


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[Cluster]:
    """Start a cluster in a new directory, and end it: one node of two processors, partition ``main``."""
    place.mkdir()
    running = Cluster(
        place,
        {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:{SYSTEM}",
            "SLURM_CONF": str(place / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(place / "mariadb.socket"),
        },
    )
    _write_configuration(place)
    try:
        running.start("munged", "--force", *_munge(place))
        _start_database(running)
        running.start("slurmdbd")
        until(lambda: _answers(running, "sacctmgr", "-n", "show", "cluster"), "the accounting")
        running.start("slurmctld", "-i")
        running.start("slurmd")
        until(lambda: "idle" in running.call("sinfo", "-h", "-o", "%T"), "an idle node")
        yield running
    finally:
        with contextlib.ExitStack() as daemons:
            for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"):
                daemons.callback(running.stop, name)
            # Jobs of a test that failed would outlive the daemons.
            daemons.callback(running.cancel_all)


def _answers(running: Cluster, *command: str) -> bool:
    return subprocess.run(command, env=running.environment, check=False, capture_output=True).returncode == 0


def _munge(place: Path) -> list[str]:
    (place / "munge.key").write_bytes(secrets.token_bytes(128))
    (place / "munge.key").chmod(0o400)
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
    return [f"--{option}={place / name}" for option, name in (files | {"seed-file": "munged.seed"}).items()]


def _start_database(running: Cluster) -> None:
    data, user = running.place / "database", f"--user={getpass.getuser()}"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", user, "--auth-root-authentication-method=normal"],
        env=running.environment,
        check=True,
        capture_output=True,
    )
    options = [f"--datadir={data}", f"--socket={running.place}/mariadb.socket", "--skip-networking", user]
    options += [f"--pid-file={running.place}/mariadbd.pid", "--innodb-lock-wait-timeout=900"]
    # The only daemon that does not leave the foreground by itself.
    command = ["setsid", "--fork", "mariadbd", "--no-defaults", *options]
    subprocess.run(command, env=running.environment, check=True, stderr=subprocess.DEVNULL)
    until((running.place / "mariadb.socket").exists, "the database")


def _write_configuration(place: Path) -> None:
    host, user, accounting = socket.gethostname().split(".")[0], getpass.getuser(), free_port()
    # A job that is requeued waits until its credential has expired.
    shared = f"AuthType=auth/munge\nAuthInfo=socket={place}/munge.socket,cred_expire=5\nSlurmUser={user}\n"
    (place / "slurm.conf").write_text(
        shared
        + f"""
ClusterName=scratch
SlurmctldHost={host}(127.0.0.1)
SlurmdUser={user}
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={place}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""
    )
    (place / "slurmdbd.conf").write_text(
        shared
        + f"""
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
LogFile={place}/slurmdbd.log
PidFile={place}/slurmdbd.pid
"""
    )
    (place / "slurmdbd.conf").chmod(0o600)
    for name in ("state", "spool"):
        (place / name).mkdir()
