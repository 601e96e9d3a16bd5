"""How fast this machine's CPU computes: measured, as cores and instructions differ from one machine to another."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from thriftune.devices import Speed
from thriftune.hardware import Precision, torch_dtype

# Rows, and features of a small model's layer: large enough that a product computes, small enough to be done at once.
_ROWS, _FEATURES = 128, 768
# Elements of a tensor that is larger than the caches.
_LARGE = 16_000_000
_LEAST_SECONDS = 0.3
# Share of the speed of one large addition at which a model's own operations read and write, in other sizes, and memory
# that is new to the process. Measured: 0.36 s of a pass over 42M with LoRA, where that speed gives 0.24 s.
_OF_COPYING = 0.67
_DRAWN = 500_000
_SENT = 64_000_000
# Share of the loopback's speed at which two ranks under gloo gather or scatter. Measured: 0.24 to 0.29 GB/s for tensors
# of 64 and 256 MiB where a socket had 1.5 GB/s; sums over all ranks had 1.0.
_OF_LOOPBACK = 0.18
_SMALL_OPERATIONS = 2000


@lru_cache(maxsize=8)
def measured(precision: Precision, processes: int) -> Speed:
    """Measure the speed that one of several processes on this CPU has. It takes about a second.

    Args:
        precision: Precision to compute in; products in fp32 are measured in any case.
        processes: Number of processes among which the cores are divided.
    """
    import torch

    products = {"fp32": _products("fp32"), "fp16": 0.0, "bf16": 0.0}
    products[precision] = _products(precision)
    large = torch.ones(_LARGE)
    target = torch.empty_like(large)
    copied = _per_second(lambda: torch.add(large, 1.0, out=target)) * 2 * large.nbytes
    small = torch.ones(8)
    started = 1 / _per_second(lambda: torch.add(small, 1.0), at_least=_SMALL_OPERATIONS)
    shared = {name: flops / processes for name, flops in products.items()}
    exchanged = _OF_LOOPBACK * _loopback() * 2 / max(2, processes)
    bandwidth = _OF_COPYING * copied / processes
    # torch draws in one thread, however many cores there are.
    draw = 1 / (_per_second(lambda: target[:_DRAWN].bernoulli_(0.5)) * _DRAWN)
    return Speed(**shared, bandwidth=bandwidth, launch=started, pcie=bandwidth, nvlink=exchanged, draw=draw)


def _loopback() -> float:
    """Bytes per second from one socket of this machine to another, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver, ThreadPoolExecutor(1) as thread:
            began = time.perf_counter()
            sent = thread.submit(sender.sendall, bytes(_SENT))
            buffer, left = bytearray(_SENT), _SENT
            while left:
                left -= receiver.recv_into(buffer, left)
            sent.result()
            return _SENT / (time.perf_counter() - began)


def _products(precision: Precision) -> float:
    """FLOP/s of the three products of a linear layer: its output, and the gradients of its input and of its weight."""
    import torch

    dtype = torch_dtype(precision)
    rows, weight = torch.ones(_ROWS, _FEATURES, dtype=dtype), torch.ones(_FEATURES, _FEATURES, dtype=dtype)

    def layer() -> None:
        torch.nn.functional.linear(rows, weight)
        rows @ weight
        rows.t() @ rows

    return _per_second(layer) * 3 * 2 * _ROWS * _FEATURES**2


def _per_second(run: Callable[[], object], at_least: int = 3) -> float:
    """How often something runs in a second, after it has run once."""
    run()
    count, began = 0, time.perf_counter()
    while count < at_least or time.perf_counter() - began < _LEAST_SECONDS:
        run()
        count += 1
    return count / (time.perf_counter() - began)
