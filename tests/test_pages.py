"""A page is there to be looked at: what it is about does not fail of it."""

import logging

from flytekit import FlyteContextManager, current_context
from flytekit.core.context_manager import ExecutionParameters, ExecutionState
from flytekit.core.data_persistence import FileAccessProvider
from flytekit.models.core.identifier import Identifier, ResourceType

from tasks import pages


def test_a_page_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch, caplog):
    """A disk that was full at the end of a training failed the training."""
    (tmp_path / "outputs").write_text("no folder")
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(logging.getLogger("thriftune"), "propagate", True)
    pages.show("training", "tiny", "<p>", "{}")
    assert "The page of the training was not written: " in caplog.text


def test_a_page_that_is_shown_again_and_again_leaves_no_file_in_the_pod(tmp_path, monkeypatch):
    """flytekit leaves one for each time: those of a training of a week filled gigabytes of its disk."""
    shown, scratch = tmp_path / "shown", tmp_path / "scratch"
    for folder in (shown, scratch):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    context = FlyteContextManager.current_context()
    parameters = ExecutionParameters.new_builder(context.user_space_params)
    parameters.enable_deck, parameters.output_metadata_prefix, parameters.decks = True, str(shown), []
    parameters.task_id = Identifier(ResourceType.TASK, "ml", "production", "train", "1")
    state = context.new_execution_state().with_params(
        mode=ExecutionState.Mode.TASK_EXECUTION, user_space_params=parameters.build()
    )
    access = FileAccessProvider(str(tmp_path / "own"), str(tmp_path / "raw"))
    with FlyteContextManager.with_context(context.with_file_access(access).with_execution_state(state)):
        for number in range(3):
            pages.publish_deck("Training", f"<p>page {number}</p>")
        assert [deck.name for deck in current_context().decks].count("Training") == 1
    assert "page 2" in (shown / "deck.html").read_text()
    assert [path for folder in (scratch, tmp_path / "own") for path in folder.rglob("*") if path.is_file()] == []
