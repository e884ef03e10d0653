"""The model behind LitServe: two worker processes, which batch what is there."""

# No `from __future__ import annotations` here: LitServe looks at the annotations themselves.

import sys

import litserve
import numpy as np
from fastapi import Request

from tests.bench.peers.serving import PROCESSES, Served, reply


class Gender(litserve.LitAPI):
    """Decodes and predicts; requests are forms with a file, as LitServe's documentation sends images."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's name for it
        self._served = Served()

    def decode_request(self, request: Request) -> np.ndarray:
        return self._served.decode(request["content"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def predict(self, x: list[np.ndarray]) -> list[float]:
        return self._served.predict(x)

    def unbatch(self, output: list[float]) -> list[float]:
        return output

    def encode_response(self, output: float) -> dict[str, object]:
        return reply(output)


if __name__ == "__main__":
    api = Gender(max_batch_size=16, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=PROCESSES, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
