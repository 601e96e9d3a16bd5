"""A process with libraries in memory that starts others by forking: importing takes far longer than what tests do.

Usage: PYTHON warm.py SETTINGS.json, with the modules to import, whether what it starts is like new, and the variables
that may differ from its own. A line of JSON asks for something, a line answers it: `{"start": {...}}` gives a process
id, `{"ask": ID}` the exit status of a process, null while it runs. What it started ends with it at the latest.

A command that is a script of this very Python goes on in the fork; any other is executed. Where processes are to be
like new ones, a fork ends as the interpreter does, which takes a third of a second of tearing down what it never used,
and is refused if its environment has other values of variables that the libraries read when they were imported: it
would find them with the values of before. Else it ends at once.
"""

import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, NoReturn, TextIO

# Variables with folders of a process's own.
_FOLDERS = ("HOME", "TMPDIR")
_BASE = sys.path[1:]  # the first is the folder of this script, which is the project's
_ORIGINAL = type(os.environ)


class _Watched(_ORIGINAL):  # type: ignore[misc,valid-type]
    """The environment, and which variables were asked for by name."""

    read: set[str] = set()  # noqa: RUF012 - os.environ becomes one after it was made

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return str(super().__getitem__(name))

    def items(self) -> Any:
        return {name: super(_Watched, self).__getitem__(name) for name in self}.items()


class _Libraries:
    """What is in memory, and what that depends on."""

    def __init__(self, modules: list[str], *, like_new: bool, may_differ: list[str]) -> None:
        self.like_new = like_new
        self.environment = dict(os.environ)
        os.environ.__class__ = _Watched
        for module in modules:
            importlib.import_module(module)
        os.environ.__class__ = _ORIGINAL
        tempfile.tempdir = None
        self.read = _Watched.read - {*_FOLDERS, *may_differ} if like_new else set()
        self.folders = _folders(self.environment)
        self.kept = [
            (vars(module), name, index)
            for module in list(sys.modules.values())
            for name, value in list(vars(module).items())
            for index, folder in enumerate(self.folders)
            if issubclass(type(value), str | PurePath) and folder in str(value)
        ]

    def differing(self, environment: dict[str, str]) -> list[str]:
        """The variables for which a new process would have something else in memory."""
        return sorted(name for name in self.read if environment.get(name) != self.environment.get(name))

    def move(self, environment: dict[str, str]) -> None:
        """Give modules that have kept folders of this process those that a new one would have kept."""
        folders = _folders(environment)
        for module, name, index in self.kept:
            value = module[name]
            module[name] = type(value)(str(value).replace(self.folders[index], folders[index]))
        if "numpy" in sys.modules:  # every fork would draw the same; `random` takes care of itself
            sys.modules["numpy"].random.seed()


def _folders(environment: dict[str, str]) -> list[str]:
    return [*(environment[name] for name in _FOLDERS), str(Path.cwd())]


class Program:
    """What a process is to run."""

    def __init__(self, command: list[str], environment: dict[str, str], directory: str) -> None:
        """Describe it.

        Args:
            command: The program, by its path, and its arguments.
            environment: All of its environment.
            directory: Where it works.
        """
        # As Python does at its start where nothing names a locale (PEP 538).
        unnamed = "LC_CTYPE" in os.environ and not {"LC_ALL", "LC_CTYPE", "LANG"} & environment.keys()
        own = {"LC_CTYPE": os.environ["LC_CTYPE"]} if unnamed else {}
        self.command, self.environment, self.directory = command, {**environment, **own}, directory

    @property
    def script(self) -> list[str]:
        """Script and arguments, if this Python would run it."""
        program, *arguments = self.command
        if program == sys.executable:
            return arguments if arguments[0].endswith(".py") else []
        with Path(program).open("rb") as file:
            return self.command if file.readline().rstrip() == b"#!" + os.fsencode(sys.executable) else []

    def take_over(self, libraries: _Libraries) -> None:
        """Make this process one that runs the program; returns if `run` is to do it, with what is in memory."""
        os.chdir(self.directory)
        if not self.script or libraries.differing(self.environment):
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and programs would inherit that
                signal.signal(number, signal.SIG_DFL)
            os.execve(self.command[0], self.command, self.environment)
        os.environ.clear()
        os.environ.update(self.environment)
        libraries.move(self.environment)
        if self.environment.get("PYTHONUNBUFFERED"):
            sys.stdout.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]

    def run(self) -> None:
        """Run the script as the interpreter does: it ends as this process does."""
        sys.argv = self.script
        added = filter(None, self.environment.get("PYTHONPATH", "").split(os.pathsep))
        sys.path[:] = [str(Path(sys.argv[0]).parent), *dict.fromkeys([*map(os.path.abspath, added), *_BASE])]
        importlib.invalidate_caches()
        runpy.run_path(sys.argv[0], run_name="__main__")

    def run_and_exit(self) -> NoReturn:
        """Run the script, and end at its end."""
        status = 1
        try:
            self.run()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def without_env(command: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command that `env NAME=VALUE ...` starts, and the variables that it sets; any other as it is."""
    words, added = list(command), {}
    if words[0] == "env":
        words.pop(0)
        while "=" in words[0]:
            name, _, added[name] = words.pop(0).partition("=")
    return words, added


def _fork() -> int:
    # A thread would be missing in the fork, and what it has locked would stay locked.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, f"there are threads: {threads}"
    return os.fork()


def _fork_spare(of: str, libraries: _Libraries) -> Program | None:
    """Fork a process that waits to be the one that this process starts with a program; it is this one's child then.

    This process will have threads when it starts the other one, as pyflyte-fast-execute has when it starts
    pyflyte-execute: it is too late to fork then.

    Returns:
        None in this process, what to run in the other one.
    """
    reading, writing = os.pipe()
    child = _fork()
    if child:
        os.close(reading)
        _start_by(child, writing, of)
        return None
    os.close(writing)
    with os.fdopen(reading) as orders:
        order = orders.readline()
    if not order:
        os._exit(0)
    program = Program(**json.loads(order))
    program.take_over(libraries)
    return program


def _start_by(spare: int, orders: int, of: str) -> None:
    """Let `subprocess` start a program by telling a process that waits; all others, and the next of it, as usual."""
    usual: Any = subprocess._fork_exec  # type: ignore[attr-defined]

    def start(command: list[Any], executables: Any, close: bool, keep: Any, cwd: Any, env: Any, *others: Any) -> int:
        words, added = without_env([os.fsdecode(word) for word in command])
        if words[0] != of or cwd is not None or any(pipe != -1 for pipe in others[:6]):
            return int(usual(command, executables, close, keep, cwd, env, *others))
        subprocess._fork_exec = usual  # type: ignore[attr-defined]
        pairs = [os.fsdecode(pair).split("=", 1) for pair in env] if env is not None else os.environ.items()
        environment = {**dict(pairs), **added}
        words[0] = shutil.which(of, path=environment["PATH"]) or of
        with os.fdopen(orders, "w") as pipe:
            json.dump({"command": words, "environment": environment, "directory": str(Path.cwd())}, pipe)
        return spare

    subprocess._fork_exec = start  # type: ignore[attr-defined]


def _started(request: dict[str, Any], libraries: _Libraries, *channel: TextIO) -> int | list[str] | Program:
    """Start a process: its id here, what to run there; or the variables because of which it cannot be a fork."""
    then, log = request.pop("then"), request.pop("log")
    program = Program(**request)
    if program.script and (differing := libraries.differing(program.environment)):
        return differing
    reading, writing = os.pipe()
    child = _fork()
    os.close(writing if child else reading)
    if child:
        with os.fdopen(reading) as signs:
            signs.read()  # until it leads its group, and has a log
        return child
    for stream in channel:  # else whoever asks would not notice that the process with the libraries has ended
        stream.close()
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    os.close(writing)
    program.take_over(libraries)
    return (_fork_spare(then, libraries) if then else None) or program


def _own_channel() -> tuple[TextIO, TextIO]:
    """Requests and answers, out of the way of libraries that print when they are imported."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def serve(requests: TextIO, answers: TextIO, libraries: _Libraries) -> Program | None:
    """Answer until nobody asks any more.

    Returns:
        In a process that it started, what that is to run.
    """
    statuses: dict[int, int | None] = {}
    for line in requests:
        request = json.loads(line)
        answer: int | list[str] | None
        if "ask" in request:
            process = request["ask"]
            if statuses[process] is None:
                ended, status = os.waitpid(process, os.WNOHANG)
                statuses[process] = os.waitstatus_to_exitcode(status) if ended else None
            answer = statuses[process]
        else:
            started = _started(request["start"], libraries, requests, answers)
            if isinstance(started, Program):
                return started
            answer = started
            if isinstance(started, int):
                statuses[started] = None
        answers.write(f"{json.dumps(answer)}\n")
    for group in (process for process, status in statuses.items() if status is None):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    return None


if __name__ == "__main__":
    sys.path[:] = _BASE
    _channel = _own_channel()
    _libraries = _Libraries(**json.loads(Path(sys.argv[1]).read_text()))
    gc.collect()
    gc.freeze()  # else a collection in each fork copies all of it
    if _program := serve(*_channel, _libraries):
        _program.run() if _libraries.like_new else _program.run_and_exit()
