"""The model behind mosec: one stage of two processes, which take what has come in meanwhile as a batch."""

from __future__ import annotations

from mosec import Server, Worker

from tests.bench.peers.serving import PROCESSES, Served, reply


class Gender(Worker):
    """Decodes and predicts; requests are the images themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._served = Served()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, object]]:
        return [reply(value) for value in self._served.predict([self._served.decode(each) for each in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Gender, num=PROCESSES, max_batch_size=16, max_wait_time=1)
    server.run()
