"""What the logs of pods are searched for is found: each of these lines was in one."""

import pytest

from cluster.noise import loud

NOISE = {
    "flytekit's warning": '{"name": "flytekit", "levelname": "WARNING", "message": "Unsupported Type typing.Any"}',
    "a connection": '{"levelname": "ERROR", "message": "caught exception in <loop>: Unclosed client session"}',
    "Python at its end": "Exception ignored in: <function ClientSession.__del__ at 0x7fa693530a40>",
    "DeepSpeed": "[2026-11-30 10:13:13,480] [WARNING] [real_accelerator.py:213:get_accelerator] Setting accelerator",
    "a warning": "bitsandbytes/optim/optimizer.py:509: UserWarning: Paged optimizers are not supported on CPU.",
    "torch": "[rank0]:W1130 10:13:13.480000 77 torch/distributed/run.py:774] Setting OMP_NUM_THREADS",
    "a traceback": "Traceback (most recent call last):",
    "a job without its store": "[W1201 08:59:26.551905578 socket.cpp:764] [c10d] The client socket is closed.",
    "a new warning of ours": "10:11:16 WARNING The disk is slow.",
}
ABOUT_THE_RUN = (
    "10:11:15 INFO step 4/8  loss 5.4302",
    "10:12:07 WARNING Told to stop (the node is going away, or the run was interrupted): saving a checkpoint",
    "│ warning │ max-steps-beyond-epochs │ training.max_steps = 8 │ a pass over the data is 7 steps, │",
    "Loading weights: 100%|##########| 21/21 [00:00<00:00, 10362.40it/s]",
    "[W1201 08:59:26.551905578 TCPStore.cpp:115] [c10d] recvVector failed on SocketImpl(fd=13, addr=[::ffff:127.0.0.1]",
    "[W1130 08:59:26.551905578 TCPStore.cpp:340] [c10d] recvValueWithTimeout failed on SocketImpl(fd=13, addr=[::ffff",
)


@pytest.mark.parametrize("line", NOISE.values(), ids=NOISE)
def test_noise_is_found_in_the_midst_of_a_log(line):
    assert loud("\n".join([*ABOUT_THE_RUN, line, *ABOUT_THE_RUN])) == [line]
