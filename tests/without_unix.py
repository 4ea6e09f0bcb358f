"""relgan where Python has only what it has on Windows: ``python without_unix.py COMMAND WORDS…``.

Modules of relgan, and nobody else, see standard modules without the names that exist on Unix only. Every one of them is
imported, then the command is run.
"""

from __future__ import annotations

import builtins
import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

import relgan

# Python's documentation: "Availability: Unix".
NAMES = {
    "os": """O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC WNOHANG chown chroot confstr fchmod fchown fdatasync
        fork forkpty fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid
        getuid killpg lchown mkfifo mknod nice openpty pathconf pipe2 posix_fadvise posix_fallocate posix_spawn pread
        pwrite register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile setgid setpgid setpriority
        setsid setuid statvfs sync sysconf tcgetpgrp uname wait wait3 wait4""",
    "signal": """SIGALRM SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG
        SIGUSR1 SIGUSR2 SIGWINCH SIG_BLOCK SIG_SETMASK SIG_UNBLOCK alarm getitimer pause pthread_kill pthread_sigmask
        setitimer siginterrupt sigpending sigtimedwait sigwait""",
    "socket": "AF_UNIX",
    "time": "clock_getres clock_gettime clock_settime tzset",
}
MODULES = ("curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")

real_import = builtins.__import__


def lacking(module: ModuleType) -> ModuleType:
    """The module without its Unix names."""
    twin = ModuleType(module.__name__)
    hidden = NAMES[module.__name__].split()
    vars(twin).update({name: value for name, value in vars(module).items() if name not in hidden})
    return twin


TWINS = {name: lacking(importlib.import_module(name)) for name in NAMES}


def import_(name: str, globals: dict[str, Any] | None = None, *rest: Any, **named: Any) -> ModuleType:
    if str((globals or {}).get("__name__")).partition(".")[0] == "relgan":
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        root, wanted = name.partition(".")[0], rest[1] if rest else ()
        if root in TWINS and (name == root or not wanted):
            return TWINS[root]
    return real_import(name, globals, *rest, **named)


def main() -> None:
    builtins.__import__ = import_
    for module in pkgutil.walk_packages(relgan.__path__, "relgan."):
        importlib.import_module(module.name)
    command = importlib.import_module(f"relgan.cli.{sys.argv[1]}")
    sys.argv = [f"relgan-{sys.argv[1]}", *sys.argv[2:]]
    command.main()


if __name__ == "__main__":
    main()
