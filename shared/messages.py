"""The messages of the contract: parsed and validated where they come in, built where they go out.

Every parser raises `InvalidMessage` with the field that is wrong, what was found there and what was expected.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import to_json

from shared.broker.base import HeaderValue, Message, Outgoing
from shared.errors import GenderlineError, InvalidMessage, short_repr
from shared.faces.file_type import describe
from shared.faces.labelling import LabelSpec
from shared.faces.labels import GENDERS
from shared.params import TrainingParams

SCHEMA: Final = 1
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
ZIP: Final = "application/zip"
TAR: Final = "application/x-tar"
GZIP: Final = "application/gzip"
ARCHIVES: Final = (ZIP, TAR, GZIP)
"""Content types of an archive sent by value; a tar.gz is a file of gzip."""
PROBE: Final = "probe"
"""Header of a prediction that only tests the model."""
TRAIN: Final = "train"
"""Header of an archive sent by value: false where it is only to be read, and not trained on."""
IMAGES: Final = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/avif", "image/heic")
_ALIASES: Final = {
    "application/x-zip": ZIP,
    "application/x-zip-compressed": ZIP,
    "application/tar": TAR,
    "application/x-gtar": TAR,
    "application/x-gzip": GZIP,
    "application/x-compressed-tar": GZIP,
    "application/x-gtar-compressed": GZIP,
    "application/x-tgz": GZIP,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
    "image/jpg": "image/jpeg",
    "image/jpe": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "image/heif": "image/heic",
    "image/avif-sequence": "image/avif",
    "image/heic-sequence": "image/heic",
}
"""Other names that programs give to content types."""
_UNSPECIFIC: Final = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-download"})
"""Content types that say nothing: there the content decides."""
_KINDS: Final = {
    "a zip archive": ZIP,
    "an empty zip archive": ZIP,
    "a tar archive": TAR,
    "a gzip file": GZIP,
    "a JPEG image": "image/jpeg",
    "a PNG image": "image/png",
    "a WebP image": "image/webp",
    "a BMP image": "image/bmp",
    "an AVIF image": "image/avif",
    "a HEIC image": "image/heic",
}
"""Content types by the words of `describe`."""
PACK_LIMIT: Final = 256
NAME_LIMIT: Final = 200
"""Characters of an archive's name."""
_FAR_FUTURE: Final = 1e11
"""Unix time in seconds, in the year 5138: a deadline beyond it is in milliseconds or finer."""
_VERSION: Final = re.compile("[0-9]{1,9}")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _ByReference(_Body):
    """An archive named instead of sent."""

    name: Annotated[str, Field(max_length=NAME_LIMIT)] | None = None
    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    params: dict[str, Any] | None = None
    labels: dict[str, Any] | None = None
    edits: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    train: bool = True


class _Shard(_Body):
    """What our own workers send one another."""

    job_id: Annotated[str, Field(pattern="^job-[0-9a-f]{12}$")]
    shard: Annotated[int, Field(ge=0)]
    start: Annotated[int, Field(ge=0)]
    stop: Annotated[int, Field(ge=0)]


class _Image(_Body):
    id: str | int | None
    data: bytes

    @field_validator("id", mode="plain")
    @classmethod
    def _plain_id(cls, value: object) -> object:
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        if isinstance(value, str) and len(value) <= 1000:
            return value
        raise ValueError("expected a text of at most 1000 characters, a whole number or null")


class _Pack(_Body):
    images: Annotated[list[_Image], Field(min_length=1, max_length=PACK_LIMIT)]


_B = TypeVar("_B", bound=_Body)


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """A dataset to train on, or a job: an archive by value or by reference.

    Exactly one of `body` and `uri` is given. `params` are a dataset's training parameters, `labels` what the message
    says of where its labels stand, `edits` the hash of the corrections to train with; without `train` the dataset is
    only read, so that somebody can look at it. `model_version` is the one that a job asks for, None for the champion.
    """

    message_id: str
    name: str
    body: bytes | None = None
    uri: str | None = None
    sha256: str | None = None
    params: TrainingParams = field(default_factory=TrainingParams)
    labels: LabelSpec | None = None
    edits: str | None = None
    train: bool = True
    model_version: int | None = None


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """Images to predict now.

    Attributes:
        ids: what each image's entry in the reply is called; None for the single image.
        images: the encoded images, as many.
        model_version: the version asked for, or None for the champion.
        deadline: Unix time, in seconds, after which an answer is of no use.
        probe: whether the images are no traffic but a test of the model: nothing is concluded from them.
    """

    ids: Sequence[str | int | None]
    images: Sequence[bytes]
    model_version: int | None = None
    deadline: float | None = None
    probe: bool = False


@dataclass(frozen=True, slots=True)
class ShardRequest:
    """One slice of a job: the archive's entries `start` to `stop`, exclusive."""

    job_id: str
    shard: int
    start: int
    stop: int


# -- coming in


def parse_dataset(message: Message) -> ArchiveRequest:
    """Parses a message of the datasets queue."""
    return _archive_request(message, takes_params=True)


def parse_job(message: Message) -> ArchiveRequest:
    """Parses a message of the jobs queue."""
    return _archive_request(message, takes_params=False)


def find_content_type(content_type: str, head: bytes) -> str:
    """Returns the content type that a body is taken as: without parameters, by its usual name.

    Where the given one says nothing, or names a kind of image that is not known, the content decides.

    Args:
        content_type: as the sender gave it.
        head: the body's first bytes; 512 are plenty.
    """
    given = content_type.partition(";")[0].strip().lower()
    given = _ALIASES.get(given, given)
    if given in _UNSPECIFIC or (given.startswith("image/") and given not in IMAGES):
        if kind := _KINDS.get(describe(head)):
            return kind
        if head.lstrip().startswith(b"{"):
            return JSON
        is_small_map = b"\x80" <= head[:1] <= b"\x8f"
        return MSGPACK if is_small_map else given
    return given


def _archive_request(message: Message, *, takes_params: bool) -> ArchiveRequest:
    name: object
    params: object
    labels: object
    edits: str | None = None
    kind = _content_type(message)
    if kind in ARCHIVES:
        name, params, labels = (message.headers.get(key) for key in ("name", "params", "labels"))
        body, uri, sha256 = message.body, None, None
        train = _flag(message, TRAIN, True)
    elif kind == JSON:
        parsed = _validated(_ByReference, _json(message.body))
        name, params, labels = parsed.name, parsed.params, parsed.labels
        body, uri, sha256 = None, parsed.uri, parsed.sha256
        edits, train = parsed.edits, parsed.train
    else:
        raise _wrong_type(message, (*ARCHIVES, JSON))
    for_datasets = {"params": params, "labels": labels, "edits": edits, "train": None if train else train}
    given = next((key for key, value in for_datasets.items() if value is not None), None)
    if not takes_params and given:
        raise InvalidMessage(f"a job takes no {given}; they belong to datasets", code="invalid_params")
    return ArchiveRequest(
        message_id=message.message_id,
        name=str(name)[:NAME_LIMIT] if name else "archive",
        body=body,
        uri=uri,
        sha256=sha256.lower() if sha256 else None,
        params=TrainingParams.parse(params),
        labels=LabelSpec.parse(labels),
        edits=edits,
        train=train,
        model_version=None if takes_params else _model_version(message),
    )


def parse_prediction(message: Message) -> PredictionRequest:
    """Parses a message of the predictions queue."""
    kind = _content_type(message)
    if kind in IMAGES:
        ids: list[str | int | None] = [None]
        images = [message.body]
    elif kind == MSGPACK:
        try:
            # No `ext_hook` and no objects: only plain values come out.
            unpacked = msgpack.unpackb(message.body, raw=False)
        except (ValueError, msgpack.UnpackException) as error:
            raise InvalidMessage(f"the body is not MessagePack: {error}") from None
        pack = _validated(_Pack, unpacked)
        ids = [image.id for image in pack.images]
        images = [image.data for image in pack.images]
    else:
        raise _wrong_type(message, (*IMAGES, MSGPACK))
    return PredictionRequest(ids, images, _model_version(message), _deadline(message), _flag(message, PROBE, False))


def parse_shard(message: Message) -> ShardRequest:
    """Parses a message of the shards queue, which only our own workers send."""
    if _content_type(message) != JSON:
        raise _wrong_type(message, (JSON,))
    body = _validated(_Shard, _json(message.body))
    return ShardRequest(body.job_id, body.shard, body.start, body.stop)


def _model_version(message: Message) -> int | None:
    given = message.headers.get("model_version")
    if given is None:
        return None
    # AMQP clients send numbers as numbers or as text.
    if isinstance(given, int | str) and not isinstance(given, bool) and _VERSION.fullmatch(str(given)):
        return int(given)
    raise InvalidMessage(f"header model_version is {short_repr(given)}; expected a version number such as 3")


def _deadline(message: Message) -> float | None:
    given = message.headers.get("deadline")
    if given is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        if not isinstance(given, bool) and math.isfinite(seconds := float(given)):
            if seconds < _FAR_FUTURE:
                return seconds
            raise InvalidMessage(
                f"header deadline is {short_repr(given)}, which seems to be in milliseconds; "
                "expected Unix time in seconds"
            )
    raise InvalidMessage(f"header deadline is {short_repr(given)}; expected Unix time in seconds")


def _flag(message: Message, header: str, default: bool) -> bool:
    given = message.headers.get(header, default)
    if isinstance(given, bool):
        return given
    if given in ("true", "false"):
        return given == "true"
    raise InvalidMessage(f"header {header} is {short_repr(given)}; expected true or false")


def _content_type(message: Message) -> str:
    return find_content_type(message.content_type, bytes(message.body[:512]))


def _wrong_type(message: Message, expected: Sequence[str]) -> InvalidMessage:
    return InvalidMessage(
        f"content type is {short_repr(message.content_type)}; expected one of {', '.join(expected)}",
        code="unsupported_content_type",
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"the body is not JSON: {error}") from None


def _checked_schema(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidMessage(f"the body is {short_repr(value)}; expected an object with a schema")
    if "schema" not in value:
        raise InvalidMessage(f'schema: missing; expected "schema": {SCHEMA}', code="unsupported_schema")
    if value["schema"] != SCHEMA or isinstance(value["schema"], bool):
        raise InvalidMessage(f"schema is {short_repr(value['schema'])}; expected {SCHEMA}", code="unsupported_schema")
    return {str(key): item for key, item in value.items() if key != "schema"}


def _validated(model: type[_B], value: Any) -> _B:
    body = _checked_schema(value)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            raise InvalidMessage(f"{where}: missing") from None
        if fault["type"] == "extra_forbidden":
            raise InvalidMessage(
                f"{short_repr(where)}: unknown field; expected {_fields(model, fault['loc'])}"
            ) from None
        expected = fault["msg"].removeprefix("Value error, ")
        raise InvalidMessage(f"{where}: {expected} (found {short_repr(fault['input'])})") from None


def _fields(model: type[BaseModel], where: tuple[int | str, ...]) -> str:
    """Returns the fields that may stand where an unknown one was found."""
    known = _Image if model is _Pack and len(where) > 1 else model
    return ", ".join(known.model_fields)


# -- going out


def request_digest(message: Message) -> str:
    """Returns the SHA-256 of what a message asks for: two that differ in it are not the same request."""
    return hashlib.sha256((message.content_type or "").encode() + b"\0" + message.body).hexdigest()


def run_id_of(message_id: str) -> str:
    """Returns the run that a dataset message makes: the same message always makes the same run."""
    return "run-" + hashlib.sha256(message_id.encode()).hexdigest()[:12]


def job_id_of(message_id: str) -> str:
    """Returns the job that a job message makes."""
    return "job-" + hashlib.sha256(message_id.encode()).hexdigest()[:12]


def fit_name(name: str) -> str:
    """Returns a name as an archive's message takes it, made of one that may be longer or, as a file's, no UTF-8."""
    return name.encode(errors="replace").decode()[:NAME_LIMIT]


def json_message(
    body: Mapping[str, Any],
    *,
    message_id: str | None = None,
    reply_to: str | None = None,
    correlation_id: str | None = None,
    headers: Mapping[str, HeaderValue] | None = None,
) -> Message:
    """Returns a JSON message with the schema's number in it."""
    optional = {} if message_id is None else {"message_id": message_id}
    return Message(
        json.dumps({"schema": SCHEMA, **body}).encode(),
        JSON,
        reply_to=reply_to,
        correlation_id=correlation_id,
        headers=headers or {},
        **optional,
    )


def by_reference(
    uri: str,
    *,
    name: str | None = None,
    sha256: str | None = None,
    params: TrainingParams | None = None,
    labels: LabelSpec | None = None,
    edits: str | None = None,
    train: bool = True,
    message_id: str | None = None,
    reply_to: str | None = None,
    correlation_id: str | None = None,
    headers: Mapping[str, HeaderValue] | None = None,
) -> Message:
    """Returns a dataset or job message that names its archive."""
    body: dict[str, Any] = {"uri": uri}
    if name is not None:
        body["name"] = name
    if sha256 is not None:
        body["sha256"] = sha256
    if params is not None:
        body["params"] = params.model_dump(mode="json", exclude_defaults=True)
    if labels is not None:
        body["labels"] = labels.as_dict()
    if edits is not None:
        body["edits"] = edits
    if not train:
        body["train"] = False
    return json_message(body, message_id=message_id, reply_to=reply_to, correlation_id=correlation_id, headers=headers)


def pack_message(images: Sequence[tuple[str | int | None, bytes]], **properties: Any) -> Message:
    """Returns a pack of (id, encoded image) pairs; `properties` are those of `Message`."""
    body = msgpack.packb({"schema": SCHEMA, "images": [{"id": key, "data": data} for key, data in images]})
    return Message(body, MSGPACK, **properties)


def prediction(key: str | int | None, probability_female: float) -> dict[str, Any]:
    """Returns one image's entry in a reply.

    Args:
        key: the image's id in the request.
        probability_female: in [0, 1]; one half counts as female.
    """
    female = probability_female >= 0.5
    return {
        "id": key,
        "gender": GENDERS[female],
        "probability_female": round(probability_female, 6),
        "confidence": round(probability_female if female else 1.0 - probability_female, 6),
    }


def prediction_error(key: str | int | None, error: GenderlineError) -> dict[str, Any]:
    """Returns the entry of an image that has no prediction."""
    return {"id": key, "error": error.as_dict()}


def json_reply(message: Message, body: Mapping[str, Any]) -> list[Outgoing]:
    """Returns the JSON reply to a message: one, or none where it asked for none."""
    if not message.reply_to:
        return []
    return message.reply(json.dumps({"schema": SCHEMA, **body}).encode(), JSON)


def prediction_reply(
    message: Message, model: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> list[Outgoing]:
    """Returns the reply to a prediction: one, or none where it asked for none.

    There is one of them for each image: hence an encoder in a fourth of the time of the standard library's. That one
    is for all other replies, since it alone can write every text that may stand in a message of JSON.

    Args:
        message: the request.
        model: the identity of the model that answered.
        entries: as `prediction` and `prediction_error` make them, in the request's order.
    """
    if not message.reply_to:
        return []
    return message.reply(to_json({"schema": SCHEMA, "model": model, "predictions": entries}), JSON)
