"""Pictures of the dashboard for the README, of the real services at work: `python -m tests.pictures FOLDER [ZIP]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from shared.faces.synthetic import draw_sample
from tests.support.browser import Visit, chromium
from tests.support.services import Installation

SAMPLE_FACES = 1200
SIZE = (1280, 860)
PICTURED = "() => performance.getEntriesByType('resource').some((entry) => entry.name.includes('sheet.webp'))"


def main(target: Path, archive: Path | None) -> None:
    """Trains on `archive`, or on the sample dataset, and saves four pictures in `target`."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        if archive is None:
            archive = folder / "sample.zip"
            draw_sample(archive, SAMPLE_FACES, 1, faults=True)
        installation = Installation(folder, f"sqlite:///{folder / 'broker.db'}")
        try:
            for module in ("dashboard", "trainer", "inference"):
                installation.start(module, wait=module == "dashboard")
            visit = Visit(browser, f"http://127.0.0.1:{installation.services[0].port}", SIZE)
            with installation.client() as client:
                first = client.submit_dataset(archive, params={"epochs": 12})
                record = list(client.follow_run(first, 1800))[-1]
                client.submit_dataset(archive, name="a second try", params={"epochs": 12, "seed": 1})
                visit.go(f"/runs/{first}")
                visit.page.screenshot(path=target / "run.png")
                visit.go(f"/datasets/{record.dataset}?result=wrong&sort=largest_error#faces")
                visit.page.wait_for_function(PICTURED)
                visit.page.screenshot(path=target / "dataset.png")
                visit.go(f"/predict?dataset={record.dataset}&pick=random")
                visit.page.get_by_role("button", name="Explain").click()
                expect(visit.page.locator("canvas").first).to_be_visible()
                visit.page.screenshot(path=target / "predict.png")
                visit.go("/")
                expect(visit.page.locator("#running progress")).to_be_visible()
                visit.page.wait_for_timeout(15_000)  # a line of speeds and a good part of the second training
                visit.page.screenshot(path=target / "overview.png")
            visit.close()
        finally:
            installation.close()
    for path in target.glob("*.png"):  # a third of the bytes, and hardly to be told apart
        with Image.open(path) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
