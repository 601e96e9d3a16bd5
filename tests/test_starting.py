"""Processes that are forked are like those that are started anew, as far as a program, its children and its end go."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from starting import Fresh, Process, UnlikeError, Warm, WarmProcessEndedError

# It keeps what its environment says when it is imported.
LIBRARY = """
import os, pathlib, tempfile
STARTED_IN = os.getcwd()
CACHE = os.path.expanduser("~/.cache")
FOLDER = pathlib.Path(tempfile.gettempdir()) / "library"
MODE = os.environ.get("LIBRARY_MODE")
TALK = os.environ.get("LIBRARY_TALK")
"""
PROBE = """
import json, os, signal, subprocess, sys, tempfile, threading
import library
found = {
    "arguments": sys.argv, "main": sys.modules["__main__"].__file__, "directory": os.getcwd(), "path": sys.path,
    "environment": dict(os.environ), "flags": list(sys.flags)[:13], "umask": os.umask(0o22), "input": sys.stdin.read(),
    "open": sorted(os.listdir("/proc/self/fd"))[:3], "threads": os.listdir("/proc/self/task") == [str(os.getpid())],
    "leads": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()], "out": [str(sys.stdout), sys.stdout.errors],
    "signals": {s.name: str(signal.getsignal(s)).split(" at ")[0] for s in signal.Signals},
    "folders": [library.STARTED_IN, library.CACHE, str(library.FOLDER), tempfile.gettempdir()],
    "library": [library.MODE, library.TALK],
    "ours": sorted(sys.modules.keys() & {"starting", "warm", "pytest"}),
}
print(json.dumps(found))
sys.stdout.flush()
if sys.argv[1:] == ["first"]:
    threading.Thread(target=threading.Event().wait, daemon=True).start()  # too late to fork
    path = os.pathsep.join([os.environ["PYTHONPATH"], os.getcwd()])
    sys.exit(subprocess.Popen(["probe", "second"], env={**os.environ, "PYTHONPATH": path}).wait())
sys.exit(7)
"""


class Programs:
    """Starts Python programs by what they do, in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.library = folder, folder / "library"
        self.library.mkdir()
        (self.library / "library.py").write_text(LIBRARY)
        self.shared = {"PATH": f"{folder}:/usr/bin:/bin", "PYTHONPATH": str(self.library), "LIBRARY_MODE": "quiet"}

    def warm(self, *modules: str, name: str = "warm") -> Warm:
        return Warm(
            Path(sys.executable), ["library", *modules], self.shared, self.folder / name, may_differ=["LIBRARY_TALK"]
        )

    def start(self, starts: Fresh | Warm, code: str, *arguments: str, **variables: str) -> tuple[Process, Path]:
        program, work, log = self.folder / "probe", self.folder / "work", self.folder / f"{time.monotonic_ns()}.log"
        work.mkdir(exist_ok=True)
        content = f"#!{sys.executable}\n{code}"
        if not program.exists() or program.read_text() != content:  # another process may be about to read it
            program.write_text(content)
            program.chmod(0o755)
        own = {"HOME": str(self.folder / "home"), "TMPDIR": str(work), **variables}
        command, environment = [str(program), *arguments], {**self.shared, **own}
        return starts.start(command, environment, work, log, then="probe" if arguments else ""), log


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture
def warm(programs: Programs) -> Iterator[Warm]:
    started = programs.warm()
    yield started
    started.close()


def until(is_so: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_a_program_and_the_one_it_starts_find_what_new_processes_find(programs, warm):
    """A second one of the same kind is a fork too, although threads run when it is asked for."""
    said = {}
    for starts in (Fresh(), warm):
        process, log = programs.start(starts, PROBE, "first", LIBRARY_TALK="loud", OWN="ümlaut")
        assert process.wait() == 7, log.read_text()
        said[type(starts)] = [json.loads(line) for line in log.read_text().splitlines()]
    fresh, forked = said[Fresh], said[Warm]
    assert [one["arguments"][1] for one in forked] == ["first", "second"]
    talks = [[one["library"].pop() for one in ones] for ones in (fresh, forked)]
    assert talks == [["loud"] * 2, [None] * 2], "where the value of a variable is used, it may differ"
    assert forked == fresh
    assert forked[1]["leads"] == [False, False]


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('in words')", 1, "in words"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import os, signal; os.killpg(os.getpgrp(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'at the end')", 0, "at the end"),
        ("import threading as t, time; t.Thread(target=lambda: print(time.sleep(0.1), 'last')).start()", 0, "last"),
        ("import os; os.execv('/bin/sh', ['sh', '-c', 'echo executed; exit 4'])", 4, "executed"),
    ],
)  # fmt: skip
def test_it_ends_as_a_new_process_ends(programs, warm, code, status, says):
    for starts in (Fresh(), warm):
        process, log = programs.start(starts, code)
        with ThreadPoolExecutor(4) as askers:
            assert set(askers.map(lambda asked: asked.wait(), [process] * 4)) == {status}
        assert says in log.read_text()


def test_a_signal_reaches_the_first_process_and_a_kill_the_whole_group(programs, warm):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('noticed', flush=True))\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    process, log = programs.start(warm, code)
    child = psutil.Process(int(until(log.read_text)))
    process.send_signal(signal.SIGTERM)
    assert until(lambda: "noticed" in log.read_text())
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    process.send_signal(signal.SIGTERM)  # its id may be another's by now


def test_forks_know_nothing_of_each_other(programs, warm):
    (programs.folder / "own.py").write_text("")
    change = "import own, os, random, sys, library; library.MODE = 1; os.environ['LEFT'] = '1'; os.chdir('/')"
    look = (
        "import json, os, random, sys, library\n"
        "print(json.dumps(['own' in sys.modules, library.MODE, 'LEFT' in os.environ, os.getcwd(), random.random()]))"
    )
    programs.start(warm, change, PYTHONPATH=str(programs.folder))[0].wait()
    logs = [programs.start(warm, look) for _ in range(2)]
    assert [process.wait() for process, _ in logs] == [0, 0]
    found = [json.loads(log.read_text()) for _, log in logs]
    assert [one[:4] for one in found] == [[False, "quiet", False, str(programs.folder / "work")]] * 2
    assert found[0][4] != found[1][4]


def test_what_is_no_script_of_this_python_is_executed(programs, warm):
    log = programs.folder / "shell.log"
    environment = {"PATH": "/bin", "ONLY": "this"}
    process = warm.start(["/bin/sh", "-c", "echo $ONLY; cat; exit 5"], environment, programs.folder, log)
    assert (process.wait(), log.read_text()) == (5, "this\n")


def test_a_variable_that_libraries_have_read_may_not_differ(programs, warm):
    with pytest.raises(UnlikeError, match="other values of LIBRARY_MODE"):
        programs.start(warm, PROBE, LIBRARY_MODE="loud")


def test_a_process_that_is_gone_or_has_threads_forks_no_more_and_says_so(programs, warm):
    process, _ = programs.start(warm, "import time; time.sleep(60)", "and a spare one")
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    with pytest.raises(WarmProcessEndedError, match="status -9"):
        process.poll()
    with pytest.raises(WarmProcessEndedError, match="status -9"):
        programs.start(warm, "")
    os.killpg(process.pid, signal.SIGKILL)
    thread = "threading.Thread(target=threading.Event().wait, daemon=True)"
    (programs.library / "threaded.py").write_text(f"import threading\n{thread}.start()")
    threaded = programs.warm("threaded", name="threaded")
    with pytest.raises(WarmProcessEndedError, match="there are threads"):
        programs.start(threaded, "")
    threaded.close()


def test_what_it_started_ends_with_it(programs):
    warm = programs.warm()
    process, log = programs.start(warm, "import time; print('runs', flush=True); time.sleep(60)", "and a spare one")
    first = psutil.Process(process.pid)
    assert until(log.read_text)
    everything = [first, *first.children(recursive=True)]
    assert len(everything) == 2
    warm.close()
    with pytest.raises(WarmProcessEndedError):
        process.poll()
    assert until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in everything))
