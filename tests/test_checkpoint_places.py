"""Where a training's checkpoints are found in a pod, what its last words are, and what is left when it is done."""

import json
import traceback
from contextlib import contextmanager

import pytest
from flytekit import FlyteContextManager
from flytekit.core.base_task import IgnoreOutputs
from flytekit.core.context_manager import ExecutionParameters
from flytekit.core.data_persistence import FileAccessProvider
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.models.core.identifier import WorkflowExecutionIdentifier

from tasks import checkpoints, settings
from thriftune.checkpoints import layout
from thriftune.checkpoints.errors import NoProgressError
from thriftune.checkpoints.lease import Lease, newest
from thriftune.checkpoints.location import Writer
from thriftune.checkpoints.manifest import Manifest
from thriftune.errors import DataError
from thriftune.stores.store import Store

KEY, FOLDER = "training-0123-45", "training-0123"
BUCKET = "memory://bucket/data"
PREFIX = f"{BUCKET}/thriftune/ml-production/checkpoints/{FOLDER}"
RECOVER = "`pyflyte execution -p ml -d production --execution-id run recover`"


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """What Flyte tells a pod of itself: its execution, attempt and prefix for outputs."""

    @contextmanager
    def enter(execution="run", attempt=0, prefix=BUCKET):
        monkeypatch.setenv("FLYTE_ATTEMPT_NUMBER", str(attempt))
        raw = f"{prefix}/ab/{execution}-n3-0-dn2-{attempt}"
        context = FlyteContextManager.current_context()
        parameters = ExecutionParameters.new_builder(context.user_space_params)
        parameters.execution_id = WorkflowExecutionIdentifier("ml", "production", execution)
        state = context.new_execution_state().with_params(user_space_params=parameters.build())
        access = FileAccessProvider(str(tmp_path), raw)
        with FlyteContextManager.with_context(
            context.with_file_access(access).with_execution_state(state).with_new_compilation_state()
        ):
            yield

    yield enter
    for kept in (BUCKET, "memory://other"):
        for name in Store(kept).names():
            Store(kept).remove(name)


def save(step):
    """A complete checkpoint."""
    Store(checkpoints._prefix(KEY)).put_bytes(layout.manifest_name(step), Manifest(step, 1, 1, ()).to_bytes())


def fail(error):
    with checkpoints.attempt(KEY):
        raise error


def test_every_attempt_and_execution_finds_the_same_folder(pod):
    found = set()
    for execution, attempt in (("run", 0), ("run", 3), ("another", 0)):
        with pod(execution, attempt):
            found.add(checkpoints.checkpoint_location("tiny", KEY).here)
    assert found == {f"{BUCKET}/thriftune/ml-production/checkpoints/{FOLDER}"}


@pytest.mark.parametrize(
    ("raw", "root"),
    [
        ("s3://b/ab/run-n3-0", "s3://b"),
        ("s3://b/data/x1/run-n3-0/", "s3://b/data"),
        ("s3://b/nightly/results/ab/run-n3-0", "s3://b/nightly/results"),
        ("s3://b/flat/run-n3-0", "s3://b/flat"),
    ],
)
def test_the_folder_follows_from_the_prefix_for_outputs(pod, monkeypatch, raw, root):
    with pod():
        access = FlyteContextManager.current_context().file_access
        monkeypatch.setattr(type(access), "raw_output_prefix", raw)
        assert settings.checkpoints_root() == f"{root}/thriftune/ml-production/checkpoints"


def test_a_setting_says_where_instead(pod, monkeypatch):
    platform = settings.PLATFORM.model_copy(update={"checkpoints": "s3://kept/checkpoints/"})
    monkeypatch.setattr(settings, "PLATFORM", platform)
    with pod():
        assert settings.checkpoints_root() == "s3://kept/checkpoints/ml-production"


def test_the_last_words_of_a_run_say_where_its_checkpoint_is_and_both_ways_on(pod):
    with pod():
        save(40)
        with pytest.raises(DataError) as caught:
            fail(DataError.single("data", "rows", "is gone.", "Bring it back."))
    (problem,) = caught.value.problems
    assert problem.remedy == (
        f"Bring it back. The newest checkpoint is that of step 40, in {PREFIX}. To go on from there, start the same "
        f"run file again, or recover this execution: {RECOVER}. With other values in the run file, name it there, as "
        f"far as they allow it: checkpoints.resume_from: {PREFIX}"
    )


def test_an_error_that_is_tried_again_says_so_too_in_case_it_was_the_last_time(pod):
    with pod(), pytest.raises(FlyteRecoverableException) as caught:
        fail(FlyteRecoverableException("The node is going away."))
    first, last = str(caught.value).splitlines()
    assert first.count("The node is going away.") == first.count("error=") == 1
    assert last.startswith("If Flyte does not try again: No checkpoint is known in memory://")
    assert RECOVER in last


def test_a_bug_is_not_replaced_and_the_way_on_is_below_its_traceback(pod):
    with pod(), pytest.raises(ZeroDivisionError) as caught:
        fail(ZeroDivisionError())
    assert RECOVER in "".join(traceback.format_exception(caught.value))


def test_a_pod_whose_result_is_in_another_one_has_no_last_words(pod):
    with pod(), pytest.raises(IgnoreOutputs) as caught:
        fail(IgnoreOutputs())
    assert "".join(traceback.format_exception(caught.value)).count("recover") == 0


def test_the_second_attempt_without_a_checkpoint_ends_the_run_with_that_reason_and_the_cause(pod):
    """Rather than a third that first gets a node."""
    with pod(attempt=0), pytest.raises(FlyteRecoverableException):
        fail(FlyteRecoverableException("lost"))
    with pod(attempt=1), pytest.raises(NoProgressError) as caught:
        fail(FlyteRecoverableException("lost again"))
    text = str(caught.value)
    assert "two attempts of execution run in a row ended before the first checkpoint" in text
    assert "lost again" in text
    assert RECOVER in text


def test_an_attempt_that_follows_two_killed_ones_without_a_checkpoint_does_not_begin(pod):
    for number in (0, 1):
        with pod(attempt=number), checkpoints.attempt(KEY):
            pass
    with pod(attempt=2), pytest.raises(NoProgressError, match="in a row ended before the first checkpoint"):
        fail(AssertionError("it began"))


def test_who_recovers_a_run_that_gave_up_does_not_wait_for_its_killed_attempt(pod):
    """A recovered execution waited for a minute on its GPUs."""
    for number in (0, 1):
        with pod(attempt=number), checkpoints.attempt(KEY):
            store = Store(checkpoints._prefix(KEY))
            killed = Lease(store, checkpoints._writer(), 0)
            killed._ended.set()
    with pod(attempt=2), pytest.raises(NoProgressError):
        fail(AssertionError("it began"))
    assert newest(store).is_released


def test_attempts_that_get_on_are_not_counted(pod):
    for number in range(8):
        with pod(attempt=number), pytest.raises(FlyteRecoverableException), checkpoints.attempt(KEY):
            save(number + 1)
            raise FlyteRecoverableException("lost")


def finish(execution="run"):
    """What a training does that has its result."""
    Lease(Store(checkpoints._prefix(KEY)), checkpoints._writer(), 0).release()
    checkpoints.mark_done(KEY)


def test_what_a_finished_training_had_is_removed_and_nothing_else(pod):
    with pod():
        with checkpoints.attempt(KEY):
            save(10)
            finish()
        beside = Store(f"{settings.checkpoints_root()}/training-9999")
        beside.put_bytes("checkpoint-1/manifest.json", b"{}")
    with pod("another"):  # the training's own run failed later, and this one was served
        checkpoints.remove(KEY)
        assert Store(settings.checkpoints_root()).names() == ["training-9999/checkpoint-1/manifest.json"]


def test_checkpoints_of_a_training_that_has_no_result_yet_stay(pod):
    """It runs with --overwrite-cache, or waits for its next node, while another run is served from the cache."""
    with pod("first"), checkpoints.attempt(KEY):
        finish()
    with pod("again"), checkpoints.attempt(KEY):
        save(10)
        Lease(Store(checkpoints._prefix(KEY)), checkpoints._writer(), 0).release()
    with pod("served"):
        checkpoints.remove(KEY)
        assert layout.manifest_name(10) in Store(checkpoints._prefix(KEY)).names()


def test_a_result_is_not_lost_where_tidying_up_fails(pod, monkeypatch, caplog):
    def fail_to_list(*_):
        raise ValueError("a bug")

    with pod(), monkeypatch.context() as patched:
        patched.setattr(Store, "names", fail_to_list)
        checkpoints.mark_done(KEY)
        checkpoints.remove(KEY)
    assert caplog.text.count("ValueError: a bug") == 2


def test_a_node_is_known_by_its_place_in_the_execution(pod):
    with pod("run", 2):
        assert checkpoints._writer() == Writer("run", 2, "n3-0-dn2")


def test_each_attempt_is_written_down_once(pod):
    with pod(attempt=0), checkpoints.attempt(KEY):
        store = Store(checkpoints._prefix(KEY))
        (name,) = store.names()
        assert json.loads(store.get_bytes(name) or b"") == {"begins_at": 0}
