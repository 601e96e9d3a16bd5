"""The HTTP process: litserve's application and processes, with an end that answers what was accepted. Late import."""

import asyncio
import logging
import multiprocessing
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from litserve import LitServer
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import WorkerSetupStatus
from prometheus_client import CONTENT_TYPE_LATEST

from thriftune.inference.serving.asking import Ask, Cancel, Report
from thriftune.inference.serving.desk import Desk
from thriftune.inference.serving.door import Door
from thriftune.inference.serving.protocol import limited
from thriftune.inference.serving.questions import Questions
from thriftune.inference.serving.refusals import RefusedError
from thriftune.inference.serving.spec import TOLD, AdaptersSpec
from thriftune.inference.serving.worker import READY, UNUSABLE, AdaptersAPI, Served

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 30
_CLOSING_SECONDS = 5  # for what has been answered to leave, when the server ends
_LOOKED_SECONDS = 0.05  # how often an ending server looks whether all is answered
_FAILED = 1  # exit status of a server whose decoding process ended


class AdaptersServer(LitServer):  # type: ignore[misc]
    """Serves until it is told to end. One HTTP process, one decoding process, two queues between them."""

    def __init__(self, served: Served, questions: Questions, key: bytes | None) -> None:
        """Make the application; nothing is loaded.

        Args:
            served: What it answers with.
            questions: How its questions are written.
            key: What clients have to know; None lets everybody in.
        """
        self._context = multiprocessing.get_context("spawn")
        self._asked, self._reports = self._context.Queue(), self._context.Queue()
        self.desk = Desk(questions.limits, self._send)
        self._spec = AdaptersSpec(self.desk, questions)
        self._exit_status = 0
        accelerator = "cuda" if served.placement.device.is_gpu else "cpu"
        super().__init__(
            AdaptersAPI(served, self._spec),
            accelerator=accelerator,
            devices=1,
            timeout=False,
            max_payload_size=None,
            healthcheck_path="/ready",
            disable_openapi_url=True,
            middlewares=[(Door, {"desk": self.desk, "key": key, "told": TOLD})],
        )
        self.app.add_api_route("/health", self._health, methods=["GET"])
        self.app.add_api_route("/metrics", self._metrics, methods=["GET"])
        self.app.add_exception_handler(RefusedError, _refused)
        self.app.add_exception_handler(HTTPException, _http)
        self.app.add_exception_handler(404, _http)
        self.app.add_exception_handler(405, _http)
        self.app.add_exception_handler(500, _broken)

    def serve(self, listening: socket.socket) -> int:
        """Load the model and answer requests until SIGTERM or Ctrl-C.

        Args:
            listening: A bound socket.

        Returns:
            The exit status of the process: 0 after a signal.
        """
        self._transport = MPQueueTransport(None, [self._reports])
        self.workers_setup_status: dict[str, str] = {}
        self.inference_workers: list[Any] = []
        limits = self.desk.limits
        config = uvicorn.Config(
            self.app,
            http=limited(limits),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=max(limits.max_connections, 128),
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        self._http = _Http(config, self.desk)
        try:
            for api in self.litapi_connector:
                self.litapi_request_queues[api.api_path] = self._asked
                self.inference_workers = self.launch_inference_worker(api)
            self._http.run(sockets=[listening])
        finally:
            self._end_workers()
        return self._exit_status

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Pass on what the decoding process reports, while the application runs.

        Args:
            app: The application.

        Yields:
            Nothing, while it runs.
        """
        # A thread of its own: the loop's pool may be busy with long texts, and joins its threads at the end, also one
        # that waits for the rest of a report whose process was killed.
        threading.Thread(target=self._pass_on, args=(asyncio.get_running_loop(),), daemon=True).start()
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            while True:
                loop.call_soon_threadsafe(self._arrived, self._reports.get())

    def _arrived(self, message: Report | str) -> None:
        if isinstance(message, Report):
            self.desk.arrived(message)
        elif message == READY:
            self.workers_setup_status = dict.fromkeys(self.workers_setup_status, WorkerSetupStatus.READY)
            self.desk.state = "ready" if self.desk.state == "loading" else self.desk.state
            logger.info("Ready: %s", ", ".join(self._spec.questions.styles))

    async def _watch(self) -> None:
        """End the server when the decoding process has ended: whoever runs it starts it again, or reads why."""
        (worker,) = self.inference_workers
        while worker.is_alive():
            await asyncio.sleep(0.5)
        self._exit_status = UNUSABLE if worker.exitcode == UNUSABLE else _FAILED
        logger.error("The decoding process ended with status %s", worker.exitcode)
        self.desk.broke()
        self._http.should_exit = True

    def _send(self, message: Ask | Cancel) -> None:
        self._asked.put((0, message.uid, 0.0, message))

    def _end_workers(self) -> None:
        self._asked.cancel_join_thread()
        for worker in self.inference_workers:
            worker.kill()  # it has nothing to save, and does not listen to SIGTERM
            worker.join()

    async def _health(self) -> Response:
        """Whether the server lives: also while it loads or ends."""
        is_alive = self.desk.state != "broken"
        return JSONResponse({"status": self.desk.state}, status_code=200 if is_alive else 503)

    async def _metrics(self) -> Response:
        return Response(self.desk.metrics.page(), media_type=CONTENT_TYPE_LATEST)


class _Http(uvicorn.Server):
    """uvicorn, which on a signal answers what was accepted and refuses the rest, before it closes anything."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk
        self._ending: asyncio.Task[None] | None = None
        self._is_told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second Ctrl-C ends at once. A second SIGTERM does not: `timeout` and others send two.

        Args:
            sig: The signal.
            frame: Where it came.
        """
        if self._is_told and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._is_told = True
        logger.info("%s: answering what was accepted", signal.Signals(sig).name)

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether to end.

        Args:
            counter: Number of the look.

        Returns:
            Whether to end now.
        """
        if self._is_told and self._ending is None:
            self._ending = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        desk = self._desk
        if desk.state != "broken":
            desk.state = "draining"
        try:
            async with asyncio.timeout(desk.limits.drain_seconds):
                while desk.accepted:
                    await asyncio.sleep(_LOOKED_SECONDS)
        except TimeoutError:
            logger.warning("%d requests are given up after %.0f s", desk.accepted, desk.limits.drain_seconds)
            desk.give_up()
        self.should_exit = True


async def _refused(_request: Request, error: Any) -> Response:
    # After 413 and 415 the connection stays a while, and the rest of the body is let go: one that is closed on a client
    # that sends loses the answer, too.
    close = {"Connection": "close"} if error.status == 408 else {}
    return JSONResponse(error.body, status_code=error.status, headers={**error.headers, **close})


async def _http(_request: Request, error: Any) -> Response:
    """Litserve's and starlette's errors, in OpenAI's shape."""
    refused = RefusedError(
        error.status_code, f"{error.detail}. The paths are in docs/serving-http.md.", code="http_error"
    )
    return JSONResponse(refused.body, status_code=error.status_code, headers=getattr(error, "headers", None))


async def _broken(_request: Request, _error: Any) -> Response:
    refused = RefusedError(500, "The server failed on this request; its log says why.", code="internal_error")
    return JSONResponse(refused.body, status_code=500)
