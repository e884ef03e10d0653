"""The model behind BentoML: a service of two worker processes."""

from __future__ import annotations

from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from tests.bench.peers.serving import PROCESSES, Served, reply


@bentoml.service(workers=PROCESSES, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Gender:
    """Decodes and predicts; the request's body is the image."""

    def __init__(self) -> None:
        self._served = Served()

    @bentoml.api
    def predict(self, data: Annotated[bytes, ContentType("image/jpeg")], /) -> dict[str, object]:
        return reply(self._served.predict([self._served.decode(data)])[0])
