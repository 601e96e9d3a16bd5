"""A prediction that was far off is reported, with both numbers."""

import logging

import pytest

from thriftune.training.memory_watch import MemoryUse, PeakMemory, warn_if_far_off


@pytest.mark.parametrize(
    ("use", "remarks"),
    [
        (MemoryUse(10.0, 11.4, 20.0, 17.1), []),
        (MemoryUse(10.0, 12.0, 20.0, 20.0), ["each device used 10.00 GiB, and 12.00 were predicted (+20%)."]),
        (MemoryUse(10.0, 10.0, 20.0, 15.0), ["the host used 20.00 GiB, and 15.00 were predicted (-25%)."]),
        (MemoryUse(0.6, 0.8, 0.6, 0.8), []),
    ],
)
def test_fifteen_percent_are_worth_a_warning(use, remarks, caplog):
    assert use.remarks == remarks
    with caplog.at_level(logging.WARNING):
        logging.getLogger("thriftune").propagate = True
        warn_if_far_off(use)
    assert len(caplog.records) == len(remarks)


def test_the_peak_is_that_of_the_block_and_not_of_what_came_before():
    with PeakMemory() as peak:
        taken = bytearray(300 << 20)
        taken[::4096] = b"x" * len(taken[::4096])
        peak._stop.wait(0.3)
    assert 0.25 < peak.process_gib - peak.start_gib < 0.5
    del taken
