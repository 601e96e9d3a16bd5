"""What leaves a task, as an error, in the log or as a page, holds no secret, and names a disk that refuses."""

import errno
import io
import logging
import os
import traceback

import pytest
from conftest import run_dict
from flytekit import FlyteContextManager, current_context
from flytekit.core.type_engine import TypeEngine
from flytekit.exceptions.user import FlyteRecoverableException, FlyteUserRuntimeException
from flytekit.models.literals import LiteralMap

from tasks import log, pages
from tasks.declaring import OnImageTask
from tasks.elastic import PlannedElasticTask
from tasks.failures import ExplainsErrors, explained
from tasks.pin import pin
from thriftune.disk import DiskFullError
from thriftune.errors import ConfigError, DataError, TransientError, chain_of

URL = "http://h/rows.jsonl?X-Amz-Signature=s3cr3t"


class Task:
    name = "tasks.some.task"

    def execute(self, **kwargs):
        return kwargs["work"]()


class Explaining(ExplainsErrors, Task):
    """A task of ours."""


def raised(work):
    with pytest.raises(Exception) as caught:
        Explaining().execute(work=work)
    return caught.value


def test_every_task_of_ours_explains_its_errors():
    assert issubclass(OnImageTask, ExplainsErrors)
    assert issubclass(PlannedElasticTask, ExplainsErrors)


def test_a_task_gives_what_it_gave():
    assert Explaining().execute(work=lambda: 7) == 7


def refused():
    try:
        raise FileNotFoundError(URL)
    except FileNotFoundError as error:
        raise DataError.single("data.source", URL, "no such file.", "Check it.", code="data-empty") from error


def not_answered():
    try:
        raise TransientError("the store does not answer") from ConnectionRefusedError(URL)
    except TransientError as error:
        raise FlyteRecoverableException(str(error)) from error


def test_what_a_library_raised_has_no_secret_and_keeps_its_name():
    """A server that refused was printed with the whole URL, as the cause of what we say of it."""

    def work():
        try:
            raise FileNotFoundError(URL)
        except FileNotFoundError as error:
            raise RuntimeError("ours") from error

    error = raised(work)
    assert [type(link).__name__ for link in chain_of(error)] == ["RuntimeError", "FileNotFoundError"]
    assert not [link for link in chain_of(error) if "s3cr3t" in str(link)]


@pytest.mark.parametrize(("work", "kind"), [(refused, DataError), (not_answered, FlyteRecoverableException)])
def test_an_error_that_says_what_to_do_is_all_that_is_seen(work, kind, caplog):
    """Sixty lines of libraries stood above it."""
    caplog.set_level(logging.DEBUG, "thriftune.tasks.failures")
    error = raised(work)
    assert type(error) is kind
    assert list(chain_of(error)) == [error]
    frames = traceback.extract_tb(error.__traceback__)
    assert frames[-1].name == "explained"
    (record,) = caplog.records
    assert "Error" in "".join(traceback.format_exception(record.exc_info[1]))
    assert "s3cr3t" not in "".join(traceback.format_exception(record.exc_info[1]))
    if kind is DataError:
        assert [problem.code for problem in error.problems] == ["data-empty"]


def test_an_error_of_the_task_itself_is_shown_without_the_secret():
    def work():
        raise ConnectionRefusedError(URL)

    error = raised(work)
    assert (type(error).__name__, str(error)) == ("ConnectionRefusedError", URL.replace("s3cr3t", "REDACTED"))
    assert error.__suppress_context__  # nobody prints the first one
    assert error.__cause__ is None


def test_a_note_stays_with_the_error_whose_secret_is_removed():
    """The last words of a training, where its checkpoint is, were lost with the secret."""

    def work():
        error = ConnectionRefusedError(URL)
        error.add_note(f"The newest checkpoint is that of step 7, not in {URL}")
        raise error

    assert raised(work).__notes__ == [
        f"The newest checkpoint is that of step 7, not in {URL.replace('s3cr3t', 'REDACTED')}"
    ]


def test_a_full_disk_that_no_phase_speaks_of_is_said_with_the_task():
    def work():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")

    error = raised(work)
    assert isinstance(error, DiskFullError)
    assert str(error).startswith("/data/x: no space left on the disk (")
    assert "while running tasks.some.task" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        FlyteRecoverableException("its worker said: No space left on device"),
        FlyteUserRuntimeException(RuntimeError("its worker said: No space left on device")),
        TransientError("away"),
        ValueError("ours"),
    ],
)
def test_other_errors_go_on_as_they_are(error):
    def work():
        raise error

    assert raised(work) is error


@pytest.mark.parametrize("secret", ["", URL])
def test_what_flyte_may_try_again_stays_that(secret):
    """By its class alone Flyte tells it: with a signature in its text, a store that did not answer ended the run."""

    def work():
        raise FlyteRecoverableException(f"The blob store did not answer: {secret}") from OSError(secret)

    error = raised(work)
    assert isinstance(error, FlyteRecoverableException)
    assert "The blob store did not answer" in str(error)
    assert all("s3cr3t" not in str(link) for link in chain_of(error))


class Unspeakable:
    """Something that cannot be put in words."""

    def __str__(self):
        raise RuntimeError("it is on another device")


def test_the_log_holds_no_secret_whoever_writes_it(monkeypatch):
    """Libraries log URLs, and errors with them."""
    log.configure()
    monkeypatch.setattr(logging, "raiseExceptions", False)  # or what logging cannot format is on stderr
    stream = io.StringIO()
    logger = logging.getLogger("somebody.else")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.warning("fetching %s (%d)", URL, 3)
        try:
            raise OSError(URL)
        except OSError:
            logger.exception("failed")
        logger.warning("100 % of %s")
        logger.warning("%d", 5)
        logger.warning("%s", Unspeakable())
    finally:
        logger.removeHandler(handler)
    said = stream.getvalue()
    assert "s3cr3t" not in said
    assert said.count("X-Amz-Signature=REDACTED") == 2
    assert "fetching http://h/rows.jsonl?X-Amz-Signature=REDACTED (3)" in said
    assert "OSError: http" in said
    assert "Traceback" in said
    assert "100 % of %s" in said


def test_a_deck_holds_no_secret():
    pages.show_deck("Some page", f"<p>{URL}&amp;token=s3cr3t</p>")
    (deck,) = [deck for deck in current_context().decks if deck.name == "Some page"]
    assert deck.html == "<p>http://h/rows.jsonl?X-Amz-Signature=REDACTED&amp;token=REDACTED</p>"


def test_a_worker_of_a_training_explains_its_errors_too():
    with pytest.raises(DiskFullError, match="while running a worker"), explained("a worker"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_a_run_that_a_task_refuses_is_explained_without_all_of_its_content():
    """flytekit printed the bytes of the whole run before the message."""
    context = FlyteContextManager.current_context()
    content = run_dict(trainings={"epochs": 2})
    literal = TypeEngine.to_literal(context, content, dict, TypeEngine.to_literal_type(dict))
    with pytest.raises(ConfigError, match=r"trainings = .*: is not a key\. Did you mean 'training'") as refused:
        pin._literal_map_to_python_input(LiteralMap({"config": literal}), context)
    assert "max_length" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flytekit", "User-scoped IgnoreOutputs received! Outputs.pb will not be uploaded. reason !!"),
        (
            "transformers.trainer_utils",
            "The tokenizer has new PAD/BOS/EOS tokens that differ from the model config.",
        ),
        (
            "torch.distributed.elastic.rendezvous.dynamic_rendezvous",
            "The node 'a' has failed to shutdown the rendezvous 'b' due to an error of type RendezvousConnectionError.",
        ),
        ("accelerate.accelerator", "Gradient accumulation steps mismatch: GradientAccumulationPlugin has 1, Deep"),
    ],
)
def test_what_a_library_says_of_every_run_is_left_out_and_nothing_else_of_it(name, text):
    library = logging.getLogger(name)
    records = [logging.LogRecord(name, logging.WARNING, "", 0, said, (), None) for said in (text, "the disk is slow")]
    assert [bool(library.filter(record)) for record in records] == [False, True]
    assert library.isEnabledFor(logging.WARNING)
