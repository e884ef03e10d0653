"""Which labels and which model's predictions a selection shows, from the store and from the dashboard's cache."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.archives.archive import ArchiveLimits
from shared.datasets.face_filter import FaceFilter, select_faces
from shared.datasets.face_selection import FaceSelection, FaceSource, StoredFaces, read_selection
from shared.errors import NotFound
from shared.faces.decode import ImageLimits
from shared.faces.labels import GENDERS, UNKNOWN
from shared.faces.png import encode_png
from shared.records.dataset import ARCHIVE_LABELS
from shared.records.predictions import read_predictions
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from tests.support.builders.archives import zipped
from tests.support.dashboard_app import Site, open_site
from trainer.data.ingest import ingest


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


@pytest.fixture(params=["store", "cache"])
def source(request: pytest.FixtureRequest, site: Site) -> FaceSource:
    """Each source in turn."""
    return StoredFaces(site.builder.store) if request.param == "store" else site.parts.store_cache


def test_the_champion_is_shown_then_the_newest_model_that_has_predictions(site: Site, source: FaceSource) -> None:
    sha256, store = site.builder.dataset(60), site.builder.store
    assert read_selection(source, sha256, FaceFilter()).wanted.version is None
    first, second, third, fourth = (site.builder.model(sha256, f"run-{letter}", accuracy=0.8) for letter in "abcd")
    for run in ("run-b", "run-d"):  # as after these runs were deleted
        store.delete(f"runs/{run}/predictions.csv")

    assert read_selection(source, sha256, FaceFilter()).wanted.version == third
    site.parts.client.promote(first, "a test")
    assert read_selection(source, sha256, FaceFilter()).wanted.version == first
    assert read_selection(source, sha256, FaceFilter(version=99)).wanted.version == first
    assert read_selection(source, sha256, FaceFilter(version=third)).wanted.version == third
    site.parts.client.promote(second, "a test")
    found = read_selection(source, sha256, FaceFilter(other=fourth))
    assert found.wanted.version == third
    assert found.others is None
    assert found.probabilities is not None
    card = site.parts.client.registry.card(third)
    np.testing.assert_array_equal(found.probabilities, read_predictions(store, sha256, card, 60))


def test_the_labels_are_those_in_force_those_of_a_run_or_those_of_the_archive(site: Site, source: FaceSource) -> None:
    sha256, edits = site.builder.dataset(60), site.parts.client.edits
    archive = read_selection(source, sha256, FaceFilter()).data.gender
    other = "female" if GENDERS[archive[0]] == "male" else "male"
    edits.add(sha256, other, [0])
    frozen = edits.freeze(sha256)
    assert frozen is not None
    edits.add(sha256, "restore", [0])
    edits.add(sha256, "exclude", [1])

    def labels(asked: str) -> tuple[str, bool]:
        data = read_selection(source, sha256, FaceFilter(labels=asked)).data
        return GENDERS[data.gender[0]], bool(data.edits[1])

    assert labels("") == (GENDERS[archive[0]], True)
    assert labels(frozen) == (other, False)
    assert labels(ARCHIVE_LABELS) == (GENDERS[archive[0]], False)
    with pytest.raises(NotFound, match="has no edits 0000"):
        labels("0" * 64)
    with pytest.raises(NotFound):
        read_selection(source, "0" * 64, FaceFilter())


def test_a_zip_of_faces_that_is_trained_on_gives_each_its_own_label(tmp_path: Path) -> None:
    """Though the images were called as the zip's are, in another order."""
    random = np.random.default_rng(1)
    order = [int(number) for number in random.permutation(40)]
    rows = [f"{number:06d}.png,{GENDERS[random.integers(2)]}" for number in order]
    images = [
        (f"images/{number:06d}.png", encode_png(random.integers(0, 255, (128, 128), np.uint8))) for number in order
    ]
    store = FileStore(tmp_path / "store")

    def labelled(archive: bytes, sha256: str) -> tuple[FaceSelection, dict[bytes, int]]:
        (tmp_path / f"{sha256}.zip").write_bytes(archive)
        limits = ArchiveLimits.from_settings(Settings()), ImageLimits.from_settings(Settings())
        ingest(tmp_path / f"{sha256}.zip", tmp_path / sha256, *limits)
        for file in (tmp_path / sha256).iterdir():
            store.put_file(f"datasets/{sha256}/{file.name}", file)
        selection = read_selection(StoredFaces(store), sha256, FaceFilter())
        faces = (face.tobytes() for face in selection.data.faces)
        return selection, dict(zip(faces, selection.data.gender.tolist(), strict=True))

    selection, before = labelled(
        zipped([*images, ("labels.csv", "\n".join(["file,gender", *rows]).encode())]), "a" * 64
    )
    file = io.BytesIO()
    selection.write_zip(file)
    assert len(before) == 40
    assert labelled(file.getvalue(), "b" * 64)[1] == before


def test_faces_are_found_by_name_however_accents_are_written_and_unknown_ages_come_last(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        data = site.parts.store_cache.edited(site.builder.dataset(60), "")
    names = [unicodedata.normalize("NFD", "Müller.png"), *data.names[1:]]
    data = replace(data, names=names, age=np.where(np.arange(60) % 2, data.age, UNKNOWN))
    assert select_faces(data, None, FaceFilter(search="mÜll")).tolist() == [0]
    ages = data.age[select_faces(data, None, FaceFilter(sort="youngest"))].tolist()
    assert ages == [*sorted(age for age in data.age.tolist() if age != UNKNOWN), *[UNKNOWN] * ages.count(UNKNOWN)]


@pytest.mark.parametrize("damaged", [b"ind", b"index,group\n3,0\n7", b"index,group\n3,0\n900,0\n", b"\xff\xff"])
def test_a_damaged_file_of_near_duplicates_leaves_the_faces_there(
    site: Site, source: FaceSource, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sha256 = site.builder.dataset(60)
    key = f"datasets/{sha256}/near_duplicates.csv"
    site.builder.store.put(key, damaged)
    assert (source.edited(sha256, "").groups == -1).all()
    assert f"{key} in the store is damaged" in caplog.text
