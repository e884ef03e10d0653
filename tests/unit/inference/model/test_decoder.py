from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest

from inference.model.decoder import Decoder
from shared.faces.decode import SIZE, ImageLimits
from shared.worker.child import ForkServer
from tests.support.builders.models import image_of

WHITE, BLACK = image_of(255), image_of(0)


@pytest.fixture
def server() -> Iterator[ForkServer]:
    with ForkServer(Decoder.TARGET) as made:
        yield made


def children_of(server: ForkServer) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def memory_files() -> int:
    """Returns how many descriptors of memory this process has."""
    return sum("memfd:" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


def test_a_child_that_is_still_at_work_writes_nothing_into_later_requests(server: ForkServer) -> None:
    with Decoder(server, ImageLimits(2**20, 2**20)) as decoder:
        (sandbox,) = decoder._children
        decoder.decode([WHITE])
        (late,) = children_of(server)
        os.kill(late, signal.SIGSTOP)
        sandbox.submit([(BLACK, 0), (BLACK, 0)])
        decoder.close()
        # In memory it ends in an image where the first child's request began.
        request = [(WHITE.ljust(SIZE * SIZE, b"\0") + BLACK, 0)]
        sandbox.submit(request)
        sandbox.receive()
        sandbox.submit(request)
        assert wait([sandbox.pipe], 30)
        ended = os.pidfd_open(late)
        os.kill(late, signal.SIGCONT)
        assert select.select([ended], [], [], 30)[0]
        os.close(ended)
        (face,) = sandbox.receive()
        assert isinstance(face, np.ndarray)
        assert (face == 255).all()


def test_a_decoder_that_is_closed_or_loses_a_child_keeps_no_memory(server: ForkServer) -> None:
    before = memory_files()
    with Decoder(server, ImageLimits(2**20, 2**20)) as decoder:
        for _ in range(3):
            (face,) = decoder.decode([WHITE])
            assert isinstance(face, np.ndarray)
            for child in children_of(server):
                os.kill(child, signal.SIGKILL)
        assert memory_files() <= before + 2  # a file, and its mapping
        decoder.close()
        assert memory_files() == before
        decoder.decode([WHITE])
    assert memory_files() == before
