"""What is fuzzed: readers that strangers' bytes come to, the inputs that they begin with, and how these are changed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pika import BasicProperties
from PIL import Image

from shared.archives.archive import Archive, ArchiveLimits, check_archive
from shared.archives.entry import EntryError
from shared.broker.base import Message, read_event
from shared.broker.rabbitmq.codec import dead_letter_of, message_of, properties_of, shrink_headers
from shared.errors import GenderlineError, InvalidDataset, InvalidImage
from shared.events import EVENT_TYPES, parse_event
from shared.faces.decode import ImageLimits, configure_opencv, decode_face
from shared.messages import parse_dataset, parse_job, parse_prediction
from shared.runtime.settings import Settings
from tests.support.builders import archives
from tests.support.builders.archives import face_pixels, saved, zipped
from tests.support.builders.layouts import tarred
from tests.support.dashboard_app import Site, open_site
from tests.zips import SAMPLES
from trainer.data.labelling.recognize import recognize_labels

_ARCHIVE_LIMITS: Final = ArchiveLimits(2**28, 100_000, 2**25, 200.0)
_IMAGE_LIMITS: Final = ImageLimits.from_settings(Settings())
_TABLES: Final = (
    b"file,age,gender,race\r\ntrain/1.jpg,20-29,Male,White\r\nval/1.jpg,more than 70,Female,Latino_Hispanic\r\n",
    b"2\nSmiling Male Young\n1.jpg  1 -1  1\n2.jpg -1  1 -1\n",
    b'{"file_name": "1.jpg", "gender": "man", "age": 3}\n{"file_name": "2.jpg", "gender": "woman"}\n',
    "\ufeffarchivo;sexo;edad\r\n1.jpg;Hombre;(25, 32)\r\n2.jpg;Mujer;3,5\r\n".encode(),
    b"user_id\toriginal_image\tface_id\tage\tgender\n3@N\t1.jpg\t1\t(0, 2)\tm\n",
    "file,gender\n1.jpg,männlich\n".encode("utf-16"),
)


_EVENTS: Final = (
    b'{"schema": 1, "run_id": "run-1", "status": "training", "name": "a.zip", "progress": {"stage": "training"}}',
    b'{"schema": 1, "run_id": "run-1", "row": {"epoch": 1, "train_loss": 0.5, "train_accuracy": 1}}',
    b'{"schema": 1, "name": "gender", "version": 3, "alias": "champion", "by": "me", "reason": "better", "at": "now"}',
    b'{"schema": 1, "job_id": "job-1", "status": "running", "name": "a.zip", "images": 9, "done": 3}',
    b'{"schema": 1, "worker": "w-1", "service": "inference", "pid": 7, "model_version": 3, "images_per_second": 9.5}',
)
_PROPERTIES: Final = (
    BasicProperties("image/png", None, {"labels": "{}", "n": 2**40, "t": {"a": [1, "b"]}}, 2, 0, "c", "r"),
    BasicProperties(
        headers={"x-death": [{"queue": "q", "reason": "delivery_limit", "count": 3}], "x-delivery-count": 3}
    ),
    BasicProperties(message_id="m", headers={"genderline-dead-id": "d", "genderline-delivery-count": "3"}),
)
_BOUNDARY: Final = "cut-here"


def _form(archive: bytes) -> bytes:
    fields = (("labels", b'{"male": ["m"]}'), ("params", b'{"epochs": 2}'), ('file"; filename="a.zip', archive))
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (_BOUNDARY.encode(), name.encode(), value)
        for name, value in fields
    ]
    return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()


def _archive(data: bytes) -> None:
    """Opens an archive and reads all that it lets read."""
    try:
        check_archive(io.BytesIO(data), _ARCHIVE_LIMITS)
        with Archive(io.BytesIO(data), _ARCHIVE_LIMITS) as archive:
            for entry in archive.entries[:200]:
                try:
                    content = archive.read(entry)
                except EntryError:
                    continue
                if len(content) != entry.size_bytes:
                    raise AssertionError(f"read {len(content)} bytes, expected {entry.size_bytes}")
    except InvalidDataset:
        pass


def _image(data: bytes) -> None:
    configure_opencv()
    try:
        face = decode_face(data, _IMAGE_LIMITS)
    except InvalidImage:
        return
    if face.pixels.shape != (128, 128) or face.width * face.height > _IMAGE_LIMITS.max_pixels:
        raise AssertionError(f"found {face.pixels.shape} of {face.width}x{face.height}")


def _labels(data: bytes) -> None:
    """Reads a table beside a few files, and a `labels` block."""
    for name in ("labels.csv", "metadata.jsonl", "male_names.txt"):
        files = [("train/1.jpg", b"x"), ("val/1.jpg", b"x"), ("2.jpg", b"x"), ("m/3.jpg", b"x"), (name, data)]
        try:
            with Archive(io.BytesIO(zipped(files)), _ARCHIVE_LIMITS) as archive:
                found = recognize_labels(archive)
        except InvalidDataset:
            continue
        if len(found.outcomes) != len(files) or not found.report.text:
            raise AssertionError("an entry has no outcome")


def _message(data: bytes) -> None:
    for parse in (parse_dataset, parse_job, parse_prediction):
        for kind in ("application/json", "application/msgpack", "application/octet-stream", "image/jpg"):
            try:
                parse(Message(data, kind, headers={"labels": data[:50].decode("latin-1")}))
            except GenderlineError:
                continue


def _event(data: bytes) -> None:
    """Takes a body for an event of every topic, as the brokers and their listeners do."""
    for topic in EVENT_TYPES:
        event = read_event(topic, data)
        if event is None:
            return
        json.dumps(event.payload)
        found = parse_event(event)
        if found is not None:
            found.model_dump_json()


def _properties(data: bytes) -> None:
    """Takes a message with these AMQP properties, from anybody and from the dead-letter queue, and sends it on."""
    properties = BasicProperties()
    try:
        properties.decode(data)
    except Exception:  # pika's own: no broker sends such properties
        return
    message = message_of(properties, b"body")
    properties_of(shrink_headers(message, 4096)).encode()
    dead_letter_of(properties, b"body", last_resort=20)


def _multipart(data: bytes) -> None:
    """Uploads a form with an archive, its labels and its parameters."""
    answer = _dashboard().web.post(
        "/api/v1/datasets", data=data, content_type=f"multipart/form-data; boundary={_BOUNDARY}"
    )
    if answer.status_code >= 500 or not isinstance(answer.json, dict):
        raise AssertionError(f"answered {answer.status_code}: {answer.data[:200]!r}")


@functools.cache
def _dashboard() -> Site:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return stack.enter_context(open_site(Path(folder)))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "archives": _archive,
    "images": _image,
    "labels": _labels,
    "messages": _message,
    "events": _event,
    "properties": _properties,
    "multipart": _multipart,
}


@functools.cache
def seeds(name: str) -> Sequence[bytes]:
    """Returns the inputs that a target begins with: sound ones, of every kind."""
    if name == "archives":
        zips = [sample.make() for sample in SAMPLES if "66,000" not in sample.what]
        files = [("UTKFace/30_0_0.jpg", b"some bytes" * 30), ("Gesichter/" + "ü" * 90 + "/31_1_0.jpg", b"more" * 200)]
        return [*zips, tarred(files), tarred(files, gzip=True), archives.with_zip64(files)]
    if name == "images":
        return _images()
    if name == "labels":
        return _TABLES
    if name == "events":
        return _EVENTS
    if name == "properties":
        return [b"".join(properties.encode()) for properties in _PROPERTIES]
    if name == "multipart":
        return [_form(zipped([("1_0_0.jpg", b"x")])), _form(tarred([("1_0_0.jpg", b"x")], gzip=True))]
    return [
        b'{"schema": 1, "name": "a", "uri": "file:///srv/a.zip", "params": {"epochs": 2}, "labels": {"male": ["a"]}}',
        b"\x82\xa6schema\x01\xa6images\x91\x82\xa2id\xa1a\xa4data\xc4\x03abc",
    ]


def _images() -> list[bytes]:
    photo = Image.fromarray(face_pixels(3)).resize((96, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [
        saved(photo, "JPEG", quality=80, exif=exif.tobytes()),
        saved(photo, "JPEG", quality=80),
        saved(photo, "JPEG", progressive=True),
        saved(photo, "JPEG", restart_marker_blocks=2),
        saved(photo.convert("CMYK"), "JPEG"),
        saved(photo, "PNG", exif=exif.tobytes()),
        saved(photo.convert("P"), "PNG", transparency=3),
        saved(photo.convert("1"), "PNG"),
        saved(photo, "BMP"),
        saved(photo.convert("P"), "BMP"),
        saved(photo, "WEBP", quality=60),
        saved(photo.convert("RGBA"), "WEBP", lossless=True),
        saved(photo, "AVIF", quality=60),
    ]
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append(saved(photo, "HEIF", quality=60))
    except ImportError:
        pass
    return found


_INTERESTING: Final = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
)


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Returns an input changed in one to eight places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not changed:
            break
        at = rng.randrange(len(changed))
        way = rng.randrange(9)
        if way == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            changed[at] = rng.randrange(256)
        elif way in {2, 3}:  # numbers in headers: lengths, sizes, offsets
            form = rng.choice(("<H", ">H", "<L", ">L", "<Q"))
            number = rng.choice(_INTERESTING) & (2 ** (8 * struct.calcsize(form)) - 1)
            changed[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif way == 4:
            del changed[at : at + rng.choice((1, 4, 30, 500))]
        elif way == 5:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 40))))
        elif way == 6:
            part = changed[at : at + rng.choice((8, 50, 400))]
            changed[at:at] = part * rng.choice((1, 3, 50))
        elif way == 7:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[at : at + 64] = other[start : start + rng.choice((8, 64, 800))]
        else:
            del changed[at:]
    return bytes(changed[: 2**20])
