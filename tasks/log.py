"""Progress lines of this package on the terminal and in the log of a pod, and quiet from its libraries."""

import logging
import sys
import warnings
from typing import Any

from thriftune.redaction import redacted

_PLAIN = logging.Formatter()


def configure() -> None:
    """Show this package's progress lines without secrets, and silence what its libraries say that nobody could act on.

    Secrets are taken out of every record of this process, whoever logs it and wherever it goes: libraries log URLs.
    """
    if logging.getLogRecordFactory() is not _record_without_secrets:
        logging.setLogRecordFactory(_record_without_secrets)
    package_logger = logging.getLogger("thriftune")
    if not package_logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        package_logger.addHandler(handler)
        package_logger.setLevel(logging.INFO)
        package_logger.propagate = False
    # The libraries warn of each other's renamed functions, some of them at every step. Nothing a user could act on.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(torch|transformers|peft|accelerate|bitsandbytes)\."
    )
    # That flytekit has no form field for a list inside a section; such keys come from the YAML file.
    logging.getLogger("flytekit").addFilter(lambda record: "cannot be converted to a literal type" not in record.msg)
    # That the model's configuration was given the special tokens of the tokenizer that is saved with it.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    # accelerate does not see that the Trainer hands the accumulation to DeepSpeed, and says so in every run.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # That it found no faster kernel for 4-bit products on the CPU; its own is what the numbers here are measured with.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _record_without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)
    try:
        said = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit, or are no text: logging says so where it formats
        return record
    if (clean := redacted(said)) != said:
        record.msg, record.args = clean, None
    if record.exc_info:
        traceback = _PLAIN.formatException(record.exc_info)
        if (clean := redacted(traceback)) != traceback:
            record.exc_text, record.exc_info = clean, None
    return record
