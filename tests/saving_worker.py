"""A training whose shards are written slowly at one step, and at another one not at all.

Usage: RANKS of tests/saving_worker.py JOBS.json, with one job for tests/sharding_worker.py. Writing step 2 waits for
the end of step 3; writing step 3 fails on rank 1. Writes `<output>.seen.json`: what there was of step 2 at the end of
step 3.
"""

import errno
import json
import sys
import threading
import time
from pathlib import Path

from sharding_worker import run
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from transformers import TrainerCallback, trainer

from thriftune import distributed

SLOW, FAILING = 2, 3


def main() -> None:
    (job,) = json.loads(Path(sys.argv[1]).read_text())
    seen = Path(job["output"] + ".seen.json")
    begun, may_write = threading.Event(), threading.Event()
    write = FileSystemWriter.write_data

    def writing(self, *arguments):
        step = int(Path(self.path).parent.name.removeprefix("checkpoint-"))
        if step == SLOW:
            begun.set()
            assert may_write.wait(60)
        if step == FAILING and distributed.current_rank().index == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments)

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == SLOW + 1:
                assert begun.wait(60)
                look(Path(str(args.output_dir)) / f"checkpoint-{SLOW}")
                deadline = time.monotonic() + 60
                while not seen.is_file():  # else the other rank would write before the first one has looked
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                may_write.set()

    def look(folder: Path) -> None:
        if distributed.current_rank().is_main:
            names = [path.name for path in (folder, *folder.rglob("*")) if path.is_file()]
            in_store = [path.name for path in (Path(job["store"]) / folder.name).rglob("*")]
            seen.write_text(json.dumps({"written": names, "in_store": in_store}))

    FileSystemWriter.write_data = writing
    trainer.DEFAULT_CALLBACKS.append(Looks)
    run(job)
    distributed.leave()


if __name__ == "__main__":
    main()
