"""What DeepSpeed compiles where it is needed: a lock that a killed process left hangs nobody."""

import subprocess
import sys

from torch.utils.file_baton import FileBaton

from thriftune.strategies.zero import operators

_HOLD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_killed_compile_is_removed_and_that_of_one_at_work_is_not(tmp_path):
    """A first run that was killed while it compiled made every later one wait for ever, without a word."""
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as compiling:
        assert compiling.stdout.readline() == "held\n"
        operators.release_if_dead(lock)
        assert lock.exists(), "its process is alive"
        compiling.kill()
        compiling.wait()
    assert lock.exists(), "torch's file outlives the process that was killed"
    operators.release_if_dead(lock)
    assert FileBaton(str(lock)).try_acquire()


def test_where_no_lock_is_nothing_happens(tmp_path):
    operators.release_if_dead(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_training_on_the_cpu_compiles_nothing(tmp_path, monkeypatch):
    """Every fresh environment compiled an operator, for minutes of silence, that no training uses."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    script = (
        "from thriftune import distributed\n"
        "distributed.use_cpu_accelerator()\n"
        "distributed.join('gloo')\n"
        "import deepspeed\n"
        "deepspeed.init_distributed()\n"
        "from deepspeed.comm import comm\n"
        "assert comm.cdb is not None and comm.cdb.shm_comm_op is None\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    file = tmp_path / "worker.py"
    file.write_text(script)
    result = subprocess.run([*torchrun, str(file)], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "extensions").exists()
