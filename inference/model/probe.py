"""Opens a model in a child process first: a file that kills its process takes no worker with it.

ONNX Runtime, CUDA and cuDNN are native code: a file can end the process that opens it, and no exception says so.
`python -m inference.model.probe PROVIDER|openvino BATCH` reads a model file from its standard input, opens it, warms it
up and probes it, as a worker does, and runs it on a batch of that many images. Exit code 0 says that the process
survived, whether or not the model is any good: the worker then opens it itself, and meets the error where there is one.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Literal

import numpy as np

from inference.model import openvino_run
from inference.model.loader import ProviderChoice, open_file
from inference.model.run import Runtime
from shared.errors import Retryable
from shared.faces.decode import SIZE

_TIMEOUT_S: Final = 120
"""Opening a model takes a second or two, on a GPU and under load some more."""
_LOG = logging.getLogger(__name__)


class ModelProber:
    """Finds out which model files a process survives. Each file is tried once for all workers of a service.

    Args:
        folder: shared by the workers of one service, and gone when that ends. Verdicts are empty files in it, named
            after the model file's SHA-256 and the runtime.
        provider: as the settings say.
        batch_size: the most images that it will run on.
    """

    def __init__(self, folder: Path, provider: ProviderChoice, batch_size: int = 1) -> None:
        self._folder = folder
        self._provider = provider
        self._batch_size = batch_size

    def survives(self, data: bytes, runtime: Runtime = "onnxruntime") -> bool:
        """Returns whether a process survives opening, warming up and probing a model file in a runtime.

        A death may be the fault of something else, such as the kernel's OOM killer: the file is tried again at the
        next call, but for callers that waited for this verdict.

        Raises:
            Retryable: no child process can be started now.
        """
        try:
            return self._try_once_for_all(data, runtime)
        except OSError as error:  # a full disk, say: the verdict cannot be shared
            _LOG.warning("cannot write to %s: %s", self._folder, error.strerror)
            return self._try(data, runtime)

    def _try_once_for_all(self, data: bytes, runtime: Runtime) -> bool:
        """Tries a file unless a worker has; raises OSError where the verdicts cannot be read or written."""
        name = f"{hashlib.sha256(data).hexdigest()}.{runtime}"
        survived, died = (self._folder / f"{name}.{verdict}" for verdict in ("survived", "died"))
        asked_at = time.time()
        with (self._folder / "probe.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if survived.exists():
                return True
            if died.exists() and died.stat().st_mtime >= asked_at:
                return False
            survives = self._try(data, runtime)
            (survived if survives else died).touch()
            return survives

    def _try(self, data: bytes, runtime: Runtime) -> bool:
        try:
            child = subprocess.run(  # noqa: S603 - this file
                [
                    sys.executable,
                    "-m",
                    __name__,
                    "openvino" if runtime == "openvino" else self._provider,
                    str(self._batch_size),
                ],
                input=data,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the worker
                check=False,
            )
        except OSError as error:
            raise Retryable(f"cannot start a process to try a model in: {error.strerror}") from error
        if child.returncode:
            _LOG.error("a model file killed the process that opened it (%s)", _describe_exit(child.returncode))
        return child.returncode == 0


def _describe_exit(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"no end after {_TIMEOUT_S} s"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main(where: ProviderChoice | Literal["openvino"], batch_size: int) -> int:
    """Opens the model file on the standard input, at a provider or in OpenVINO. Returns 0 if it is alive afterwards."""
    signal.alarm(_TIMEOUT_S)  # whatever native code does, and whether or not anybody still waits
    try:
        data = sys.stdin.buffer.read()
        run = openvino_run.open_run(data) if where == "openvino" else open_file(data, where, "the model")[1]
        run(np.random.default_rng(0).integers(0, 256, (batch_size, 1, SIZE, SIZE), dtype=np.uint8))
    except Exception as error:
        _LOG.debug("the worker will say why: %s", error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))  # type: ignore[arg-type]  # from `ModelProber`
