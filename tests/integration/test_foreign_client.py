"""The client of docs/messages.md, which uses nothing of ours, against three separately started services on RabbitMQ."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.faces.synthetic import draw_sample
from tests.rabbitmq_shared import SharedNode
from tests.services import Installation

CLIENT_S = 180
"""How long the client may take: so long that one that does not end is told with what was printed, not by the limit."""

PAGE = Path(__file__).parents[2] / "docs" / "messages.md"


def script() -> str:
    """Returns the page's Python example."""
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.mark.rabbitmq
def test_the_foreign_client_trains_by_value_and_reference_and_gets_every_prediction(
    rabbitmq: SharedNode, tmp_path: Path
) -> None:
    installation = Installation(tmp_path, rabbitmq.url, prefix="genderline")
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    draw_sample(tmp_path / "faces.zip", 60, seed=3)
    archive = shutil.move(tmp_path / "faces.zip", allowed / "faces.zip")
    program = tmp_path / "client.py"
    program.write_text(script())
    try:
        installation.start("trainer", wait=False)
        installation.start("inference", wait=False)
        installation.start("dashboard")
        printed = tmp_path / "client.log"
        code = None
        with printed.open("wb") as output, contextlib.suppress(subprocess.TimeoutExpired):
            code = subprocess.run(
                [sys.executable, "-u", str(program), rabbitmq.url, str(archive)],
                cwd=tmp_path,  # away from our packages
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=CLIENT_S,
                check=False,
            ).returncode
        assert code == 0, f"{printed.read_text()}\n{installation.logs()}"
        lines = printed.read_text().splitlines()
        for kind in ("by value", "by reference"):
            assert f"{kind} accepted None None" in lines
            assert any(line.startswith(f"{kind} registered {{'name': 'gender'") for line in lines), lines
        last = lines[-1]
        assert last.startswith("201 replies; [{'id': None, 'gender': ")
        good, broken = eval(last[last.rindex("] [") + 2 :])  # our own script's own print
        assert good["id"] == "good"
        assert 0 <= good["probability_female"] <= 1
        assert broken["id"] == "broken"
        assert broken["error"]["code"] == "invalid_image"
    finally:
        installation.close()
        with installation.broker() as broker:
            assert broker.depths()[broker.topology.dead].ready == 0
