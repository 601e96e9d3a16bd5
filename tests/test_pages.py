"""A page is there to be looked at: what it is about does not fail of it."""

import logging

from tasks import pages


def test_a_page_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch, caplog):
    """A disk that was full at the end of a training failed the training."""
    (tmp_path / "outputs").write_text("no folder")
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(logging.getLogger("thriftune"), "propagate", True)
    pages.show("training", "tiny", "<p>", "{}")
    assert "The page of the training was not written: " in caplog.text
