"""What was used over a run, in bounded memory; and a warning before something is full, once."""

import json
import logging
import os
import tempfile
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pynvml
import pytest

from thriftune.container import Fill
from thriftune.training.guards.readings import Reading, SystemReader
from thriftune.training.guards.resources import MOST_POINTS, FillWatch, History, ResourceWatch, Samples

GIB = 2**30
CALM = Reading(process=1.0, host=Fill(8.0, 16.0), disk=Fill(40.0, 100.0), shared_memory=Fill(0.5, 8.0))


def disk(used):
    return replace(CALM, disk=Fill(used, 100.0))


@pytest.mark.parametrize("count", [1, 599, 600, 601, 5000, 50_000])
def test_a_history_is_bounded_and_keeps_the_peak_and_the_end(count):
    history = History()
    for i in range(count):
        history.add(5.0 * i, replace(CALM, process=9.0 if i == count // 3 else 1.0))
    samples = history.samples()
    assert MOST_POINTS / 2 <= len(samples.seconds) <= MOST_POINTS or count < MOST_POINTS
    assert samples.seconds == sorted(samples.seconds)
    assert samples.seconds[-1] == 5.0 * (count - 1)
    assert max(samples.process) == 9.0
    assert samples.process.count(9.0) == 1


def test_samples_survive_json_and_say_what_there_was_not():
    history = History()
    history.add(0.0, replace(CALM, shared_memory=None))
    history.add(5.0, replace(CALM, shared_memory=None, device=Fill(10.0, 80.0)))
    samples = history.samples()
    assert samples.shared_memory == []
    assert (samples.device, samples.device_limit) == ([0.0, 10.0], 80.0)
    assert Samples(**json.loads(json.dumps(asdict(samples), allow_nan=False))) == samples
    assert History().samples() == Samples()


def test_each_threshold_is_told_once_with_the_time_left():
    watch, told = FillWatch("/scratch"), []
    for minute in range(61):
        told += watch.check(60.0 * minute, disk(40.0 + minute))
    assert [(warning.seconds, warning.resource) for warning in told] == [(45 * 60, "disk"), (55 * 60, "disk")]
    assert told[0].text == (
        "/scratch is 85% full (85.0 of 100.0 GiB) and fills in about 15 min. "
        "Give the pods more ephemeral storage, or keep fewer checkpoints."
    )
    assert told[1].seconds_left == pytest.approx(300)


def test_what_is_full_but_does_not_fill_has_no_time_left():
    watch = FillWatch()
    told = [warning for second in range(0, 600, 5) for warning in watch.check(second, disk(96.0))]
    assert [(warning.share, warning.seconds_left) for warning in told] == [(0.96, None)]
    assert "is 96% full (96.0 of 100.0 GiB). Give" in told[0].text


def test_a_slope_is_of_the_last_minutes_and_not_of_the_whole_run():
    watch = FillWatch()
    for second in range(0, 3600, 60):
        assert watch.check(second, disk(80.0)) == []
    told = watch.check(3600, disk(90.0))
    assert told[0].seconds_left == pytest.approx(300)


def test_host_and_shared_memory_have_remedies_of_their_own():
    full = replace(CALM, host=Fill(15.9, 16.0), shared_memory=Fill(7.0, 8.0), device=Fill(79.0, 80.0))
    told = FillWatch().check(0.0, full)
    assert [(warning.resource, warning.text.split(" (")[0]) for warning in told] == [
        ("host memory", "Host memory is 99% full"),
        ("shared memory", "/dev/shm is 88% full"),
    ]
    assert "fewer data loader workers" in told[1].text


def test_a_real_run_sees_real_files_and_real_memory(tmp_path):
    """Memory is that of this process, /dev/shm and the disk are those the files were written to."""
    with ResourceWatch(tmp_path, interval_seconds=0.05) as watch:
        watch._stop.wait(0.2)
        taken = bytearray(64 << 20)
        taken[::4096] = b"x" * len(taken[::4096])
        with tempfile.TemporaryFile(dir="/dev/shm") as in_memory, tempfile.TemporaryFile(dir=tmp_path) as on_disk:
            for file in (in_memory, on_disk):
                file.write(os.urandom(1 << 20) * 64)
                file.flush()
                os.fsync(file.fileno())
            watch._stop.wait(0.3)
        del taken
    samples = watch.samples()
    # One for each interval, however long a busy disk takes, and one at either end.
    assert 4 <= len(samples.seconds) <= samples.seconds[-1] / 0.05 + 4
    for values in (samples.process, samples.shared_memory):
        assert 0.05 < max(values) - values[0] < 0.5
    assert len(samples.disk) == len(samples.host) == len(samples.seconds)
    assert 0 < max(samples.host) <= samples.host_limit
    assert 0 < max(samples.disk) <= samples.disk_limit
    assert not watch._thread.is_alive()


def test_a_warning_reaches_the_log_and_a_folder_that_is_gone_does_not_end_the_watch(caplog, monkeypatch):
    readings = iter([disk(50.0), OSError("gone"), disk(91.0), disk(92.0)])
    done = threading.Event()

    def read():
        reading = next(readings, None)
        if reading is None:
            done.set()
            return disk(92.0)
        if isinstance(reading, OSError):
            raise reading
        return reading

    monkeypatch.setattr(logging.getLogger("thriftune"), "propagate", True)
    with caplog.at_level(logging.WARNING), ResourceWatch(Path("/scratch"), 0.01, read) as watch:
        assert done.wait(10)
    assert {record.message.split(" (")[0] for record in caplog.records} == {"/scratch is 91% full"}
    assert [warning.resource for warning in watch.warnings] == ["disk"]


@pytest.fixture
def two_gpus(monkeypatch):
    """A driver below the real pynvml that has two GPUs; this machine may have none."""

    def memory_of(handle):
        return pynvml.c_nvmlMemory_t(total=16 * GIB, used=(3, 12)[handle] * GIB)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory_of)


def lost(*_):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


def test_of_several_gpus_the_fullest_counts(two_gpus, tmp_path):
    assert SystemReader(tmp_path)().device == Fill(12.0, 16.0)


def test_a_driver_that_does_not_answer_is_no_gpu(two_gpus, monkeypatch, tmp_path):
    read = SystemReader(tmp_path)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lost)
    assert read().device is None
    monkeypatch.setattr(pynvml, "nvmlInit", lost)
    assert SystemReader(tmp_path)().device is None


def test_nvml_itself_says_that_a_machine_without_a_driver_has_no_gpu(tmp_path):
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert SystemReader(tmp_path)().device is None
    else:  # here is a GPU: then it is read
        assert SystemReader(tmp_path)().device.size > 1.0
