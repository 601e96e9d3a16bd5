"""Close the connections to S3 that flytekit leaves open: a process that ends says an error about each of them.

s3fs means to close them itself, and looks for them where aiobotocore no longer has them (fsspec/s3fs#943). Remove this
when it finds them. Those of `thriftune.stores` it closes, as their event loop is its own.

Where code is uploaded, the first process of a pod downloads it, and has none of it. So it is told to log no errors:
what goes wrong in it is raised. The one that it starts lacks our code too if the upload is wrong. What goes wrong there
is only logged, so its command line gives flytekit its usual level again. Where the code is in the image, there is one
process, and nothing is changed.
"""

import asyncio
import atexit
import functools
import logging
import sys
from typing import Any

from flytekit.configuration import SerializationSettings
from flytekit.loggers import LOGGING_ENV_VAR
from flytekit.utils.asyn import run_sync

# A store that does not answer must not keep a pod alive.
_LONGEST_S = 5.0


class ClosesConnections:
    """Mixin for a task class: closes what flytekit opened in a process that runs a task, when the process ends."""

    def get_default_command(self, settings: SerializationSettings) -> list[str]:
        """The command that runs the task, with flytekit's level for it: what `--env` says, or flytekit's default."""
        above: Any = super()
        return with_usual_level(settings, above.get_default_command(settings))

    def _get_container(self, settings: SerializationSettings) -> Any:
        """The container, whose first process logs no errors."""
        above: Any = super()
        container = above._get_container(settings)  # noqa: SLF001 - flytekit has no other place for it
        if settings.should_fast_serialize():
            container.env[LOGGING_ENV_VAR] = str(logging.CRITICAL)
        return container

    def dispatch_execute(self, ctx: Any, input_literal_map: Any) -> Any:
        """Run the task, whose inputs may be refused."""
        _close_at_the_end()
        above: Any = super()
        return above.dispatch_execute(ctx, input_literal_map)


def with_usual_level(settings: SerializationSettings, command: list[str]) -> list[str]:
    """A command that runs a task, with flytekit's usual level of logging where the process before it logs no errors.

    Args:
        settings: Settings of the registration.
        command: The command.
    """
    if not settings.should_fast_serialize():
        return command
    level = (settings.env or {}).get(LOGGING_ENV_VAR, str(logging.WARNING))
    return ["env", f"{LOGGING_ENV_VAR}={level}", *command]


@functools.cache
def _close_at_the_end() -> None:
    """Close them while flytekit's event loop still runs: it is told to end at the exit too, but was used before."""
    atexit.register(run_sync, _close)


async def _close() -> None:
    s3fs = sys.modules.get("s3fs")
    # flytekit keeps one for each set of options, in fsspec's cache, and uses it only from its own event loop.
    opened = [one for one in s3fs.S3FileSystem._cache.values() if one.asynchronous] if s3fs else []  # noqa: SLF001
    closing = [one._s3creator.__aexit__(None, None, None) for one in opened if one._s3 is not None]  # noqa: SLF001
    await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), _LONGEST_S)
