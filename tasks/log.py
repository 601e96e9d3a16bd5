"""Show this package's progress on the terminal and in the log of a pod, without the noise of its libraries."""

import logging
import sys
import warnings
from typing import Any

from thriftune.redaction import redacted

_PLAIN = logging.Formatter()
# What libraries say of runs in which nothing is wrong, by their loggers.
_SAID_FOR_NOTHING = {
    "flytekit": (
        # There is no form field for a list inside a section; such keys come from the YAML file.
        "cannot be converted to a literal type",
        # The Elastic plugin ends a task so on all nodes but the first, with the results (flyteorg/flytekit#1603).
        "User-scoped IgnoreOutputs received! Outputs.pb will not be uploaded.",
    ),
    # The node that holds the store of a job that is done has ended before the others left it (kubeflow/trainer#2041).
    "torch.distributed.elastic.rendezvous.dynamic_rendezvous": ("has failed to shutdown the rendezvous",),
    # The model's configuration got the special tokens of the tokenizer that is saved with it (huggingface/trl#7093).
    "transformers.trainer_utils": ("The tokenizer has new PAD/BOS/EOS tokens that differ from the model config",),
    # accelerate does not see that the Trainer passes the accumulation to DeepSpeed (huggingface/accelerate#3632).
    "accelerate.accelerator": ("Gradient accumulation steps mismatch: GradientAccumulationPlugin has",),
    # There is no faster kernel for 4-bit products on the CPU; the numbers here are measured with its own
    # (bitsandbytes-foundation/bitsandbytes#2064).
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward from kernels-community",),
}


def configure() -> None:
    """Show this package's progress lines without secrets, and silence library messages that nobody could act on.

    Secrets are removed from every log record of this process, from every logger: libraries log URLs.
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
    # The libraries warn about each other's renamed functions, some of them at every step. A user cannot act on that.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(torch|transformers|peft|accelerate|bitsandbytes)\."
    )
    # Says that optimizers are not paged where no GPU is (bitsandbytes-foundation/bitsandbytes#1901).
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU", category=UserWarning)
    # flytekit declares a flag of one word twice (to_click_option of pyflyte run: --quantize/--no_quantize and
    # --quantize/--no-quantize), and click warns about that.
    warnings.filterwarnings("ignore", message="The parameter --quantize is used more than once", category=UserWarning)
    for name in _SAID_FOR_NOTHING:
        logging.getLogger(name).addFilter(_is_about_the_run)


def say_whose(whose: str) -> None:
    """Begin every progress line of this process with whose it is.

    Args:
        whose: Who, in a word or two.
    """
    for handler in logging.getLogger("thriftune").handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{whose}] %(message)s", "%H:%M:%S"))


def _is_about_the_run(record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in _SAID_FOR_NOTHING.get(record.name, ()))


def _record_without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)
    try:
        said = record.getMessage()
    except Exception:  # noqa: BLE001 - wrong arguments: logging reports them when it formats the record
        return record
    if (clean := redacted(said)) != said:
        record.msg, record.args = clean, None
    if record.exc_info:
        traceback = _PLAIN.formatException(record.exc_info)
        if (clean := redacted(traceback)) != traceback:
            record.exc_text, record.exc_info = clean, None
    return record
