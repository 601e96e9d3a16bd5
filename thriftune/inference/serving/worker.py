"""The decoding process: litserve starts it, loads the model in it, and passes it requests. Imports litserve."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from litserve import LitAPI
from litserve.loops.base import LitLoop
from tqdm import tqdm

from thriftune.errors import ThriftuneError
from thriftune.inference.serving.asking import Ask, Cancel
from thriftune.inference.serving.decoder import Decoder
from thriftune.inference.serving.loaded import load
from thriftune.models.loading import Placement

if TYPE_CHECKING:
    from litserve.transport.base import MessageTransport

logger = logging.getLogger(__name__)

READY = "ready"  # the first message of the process
UNUSABLE = 2  # exit status of a process whose model cannot be served: the user's fault
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOOKED_SECONDS = 1.0  # how often the process looks whether its parent is there


@dataclass(frozen=True)
class Served:
    """What a server answers with.

    Attributes:
        model_dir: The base model.
        adapters: Adapter directories by the names that they are served under.
        placement: How to hold the model.
        max_batch: Most answers at once.
        threads: Threads that compute on the CPU; None leaves torch's number.
    """

    model_dir: Path
    adapters: Mapping[str, Path]
    placement: Placement
    max_batch: int
    threads: int | None = None


class AdaptersAPI(LitAPI):  # type: ignore[misc]
    """What litserve runs in the decoding process."""

    def __init__(self, served: Served, spec: Any) -> None:
        """Say what to load.

        Args:
            served: What the server answers with.
            spec: The endpoints.
        """
        super().__init__(spec=spec, loop=DecodingLoop())
        self.served = served
        self.decoder: Decoder | None = None

    def setup(self, device: Any) -> None:
        """Load the model, in the decoding process.

        Args:
            device: litserve's name for it; the placement says more.
        """
        for each in (signal.SIGINT, signal.SIGTERM):  # may reach every process: the parent ends this one, at last
            signal.signal(each, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
        # Its own lock is one between processes, which Python reports as leaked when this one is killed at the end.
        tqdm.set_lock(threading.RLock())
        if self.served.threads:
            import torch

            torch.set_num_threads(self.served.threads)
        try:
            loaded = load(self.served.model_dir, self.served.adapters, self.served.placement)
        except ThriftuneError as error:
            logger.error("%s", error)
            sys.exit(UNUSABLE)
        self.decoder = Decoder(loaded, self.served.max_batch)

    def authorize(self) -> None:
        """Nothing: `thriftune.inference.serving.door` has looked at the key, and litserve would want another."""

    def health(self) -> bool:
        """Whether requests are taken, for the readiness that litserve answers."""
        return bool(self.spec.desk.state == "ready")


class DecodingLoop(LitLoop):  # type: ignore[misc]
    """Takes requests and gives up requests between two steps of the decoder, and reports each step."""

    def pre_setup(self, lit_api: LitAPI, spec: Any = None) -> None:
        """Nothing to check: the loop asks the decoder alone.

        Args:
            lit_api: What decodes.
            spec: The endpoints.
        """

    def __call__(
        self,
        lit_api: AdaptersAPI,
        device: Any,
        worker_id: int,
        request_queue: Any,
        transport: "MessageTransport",
        workers_setup_status: Any,
        callback_runner: Any,
    ) -> None:
        """Decode until the parent ends this process.

        Args:
            lit_api: Has the decoder.
            device: litserve's name of the device.
            worker_id: litserve's number of the process.
            request_queue: Where requests come from.
            transport: Where reports go.
            workers_setup_status: litserve's table, which is not shared here.
            callback_runner: litserve's callbacks; there are none.
        """
        decoder = lit_api.decoder
        assert decoder is not None, "setup has made it"
        transport.send(READY, consumer_id=0)
        while True:
            for message in _waiting(request_queue, block=not decoder.is_busy):
                if isinstance(message, Cancel):
                    decoder.cancel(message.uid)
                else:
                    decoder.add(message)
            # Also when the last one was cancelled: else the numbers of its last step would stay.
            transport.send(decoder.step(), consumer_id=0)


def _end_with_parent() -> None:
    """End this process when its parent is gone, whatever it is doing: loading a model may take minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "litserve starts this process"
    while os.getppid() == parent.pid:
        time.sleep(_LOOKED_SECONDS)
    os._exit(1)


def _waiting(queue: Any, *, block: bool) -> list[Ask | Cancel]:
    """All messages that are there; waits for the first one if there is nothing else to do."""
    found: list[Ask | Cancel] = [queue.get()[-1]] if block else []
    with suppress(Empty):
        while True:
            found.append(queue.get_nowait()[-1])
    return found
