"""Several processes on this machine that work together under gloo, for the tests of what they share."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable

from accelerate.state import PartialState


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def together(work: Callable[[], object], processes: int) -> list[int]:
    """The exit statuses of `work` in forked processes, which find torch loaded and end without running pytest's own
    code; negative for a signal."""
    port = free_port()
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            try:
                PartialState._reset_state()
                if processes > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                work()
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
