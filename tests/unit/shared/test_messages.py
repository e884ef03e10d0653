from __future__ import annotations

import calendar
import contextlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.broker.base import HeaderValue, Message
from shared.clock import now_iso
from shared.errors import InvalidImage, InvalidMessage
from shared.messages import (
    PACK_LIMIT,
    by_reference,
    find_content_type,
    job_id_of,
    json_message,
    json_reply,
    pack_message,
    parse_dataset,
    parse_job,
    parse_prediction,
    parse_shard,
    prediction,
    prediction_error,
    prediction_reply,
    run_id_of,
)
from shared.params import TrainingParams

PARSERS = [parse_dataset, parse_job, parse_prediction, parse_shard]
SHA256 = "0123456789abcdef" * 4


def json_of(value: object) -> Message:
    return Message(json.dumps(value).encode(), "application/json")


def pack_of(value: object) -> Message:
    return Message(msgpack.packb(value), "application/msgpack")


def image_with(**headers: HeaderValue) -> Message:
    return Message(b"image", "image/png", headers=headers)


def refused(parse: Callable[[Message], object], message: Message) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        parse(message)
    return caught.value


# -- what is taken


def test_an_archive_by_value_brings_name_and_params_in_its_headers() -> None:
    message = Message(b"PK", "Application/ZIP; x=y", "m1", headers={"name": "faces", "params": '{"epochs": 3}'})
    request = parse_dataset(message)
    assert (request.message_id, request.name, request.body, request.uri) == ("m1", "faces", b"PK", None)
    assert request.params.epochs == 3


def test_an_archive_without_a_name_is_called_archive() -> None:
    assert parse_dataset(Message(b"PK", "application/zip")).name == "archive"


def test_an_archive_by_reference_is_what_the_client_builds() -> None:
    message = by_reference(
        "store:a/b.zip", name="faces", sha256=SHA256, params=TrainingParams(epochs=7), message_id="m1", reply_to="r"
    )
    request = parse_dataset(message)
    assert (request.message_id, request.uri, request.name, request.sha256) == ("m1", "store:a/b.zip", "faces", SHA256)
    assert request.params == TrainingParams(epochs=7)
    assert request.body is None
    assert message.reply_to == "r"


def test_edits_and_the_wish_only_to_read_travel_with_a_dataset_and_not_with_a_job() -> None:
    asked = parse_dataset(by_reference("store:a/b.zip", edits=SHA256, train=False))
    assert (asked.edits, asked.train) == (SHA256, False)
    plain = parse_dataset(by_reference("store:a/b.zip"))
    assert (plain.edits, plain.train) == (None, True)
    assert b"train" not in by_reference("store:a/b.zip").body
    for value in (False, "false"):
        assert not parse_dataset(Message(b"PK", "application/zip", headers={"train": value})).train
    with pytest.raises(InvalidMessage, match="expected true or false"):
        parse_dataset(Message(b"PK", "application/zip", headers={"train": "no"}))
    for fields in ({"edits": SHA256}, {"train": False}):
        with pytest.raises(InvalidMessage, match=f"a job takes no {next(iter(fields))}"):
            parse_job(by_reference("store:a/b.zip", **fields))


def test_a_sha256_may_be_written_in_capitals() -> None:
    assert parse_job(by_reference("store:a", sha256=SHA256.upper())).sha256 == SHA256


def test_one_image_is_a_request_of_one_without_an_id() -> None:
    request = parse_prediction(image_with())
    assert (list(request.ids), list(request.images)) == ([None], [b"image"])
    assert (request.model_version, request.deadline) == (None, None)


def test_a_pack_keeps_ids_and_images_in_order() -> None:
    pairs: list[tuple[str | int | None, bytes]] = [("a", b"1"), (2, b"2"), (None, b"3")]
    request = parse_prediction(pack_message(pairs))
    assert list(zip(request.ids, request.images, strict=True)) == pairs


def test_a_pack_of_the_limit_is_taken() -> None:
    assert len(parse_prediction(pack_message([(n, b"x") for n in range(PACK_LIMIT)])).images) == 256


@pytest.mark.parametrize("version", [3, "3", "003"])
def test_a_version_may_be_a_number_or_text(version: HeaderValue) -> None:
    assert parse_prediction(image_with(model_version=version)).model_version == 3


@pytest.mark.parametrize("deadline", [1_700_000_000, 1_700_000_000.0, "1700000000", "1.7e9"])
def test_a_deadline_may_be_a_number_or_text(deadline: HeaderValue) -> None:
    assert parse_prediction(image_with(deadline=deadline)).deadline == 1_700_000_000.0


def test_a_shard_is_what_the_workers_build() -> None:
    request = parse_shard(json_message({"job_id": job_id_of("m"), "shard": 2, "start": 10, "stop": 20}))
    assert (request.job_id, request.shard, request.start, request.stop) == (job_id_of("m"), 2, 10, 20)


# -- what is refused, and with which words


@pytest.mark.parametrize(
    ("parse", "expected"),
    [
        (parse_dataset, "application/zip, application/x-tar, application/gzip, application/json"),
        (parse_job, "application/zip, application/x-tar, application/gzip, application/json"),
        (
            parse_prediction,
            "image/jpeg, image/png, image/webp, image/bmp, image/avif, image/heic, application/msgpack",
        ),
        (parse_shard, "application/json"),
    ],
)
def test_an_unknown_content_type_is_refused_with_those_that_are_taken(
    parse: Callable[[Message], object], expected: str
) -> None:
    error = refused(parse, Message(b"x", "text/html"))
    assert error.code == "unsupported_content_type"
    assert str(error) == f"content type is 'text/html'; expected one of {expected}"


@pytest.mark.parametrize(
    ("content_type", "head", "taken_as"),
    [
        ("image/jpg", b"", "image/jpeg"),
        ("image/pjpeg; q=1", b"", "image/jpeg"),
        ("image/x-ms-bmp", b"", "image/bmp"),
        ("IMAGE/X-PNG", b"", "image/png"),
        ("application/x-zip", b"", "application/zip"),
        ("application/x-zip-compressed", b"", "application/zip"),
        ("application/x-gzip", b"", "application/gzip"),
        ("application/octet-stream", b"PK\x03\x04", "application/zip"),
        ("application/octet-stream", b"\x1f\x8b\x08", "application/gzip"),
        ("application/octet-stream", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("application/octet-stream", b'{"schema": 1}', "application/json"),
        ("application/octet-stream", b"\x82\xa6schema\x01", "application/msgpack"),
        ("", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("image/png-or-so", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("image/gif", b"GIF89a", "image/gif"),
        ("application/octet-stream", b"%PDF-1.7", "application/octet-stream"),
        ("text/html", b"\xff\xd8\xff\xe0", "text/html"),
    ],
)
def test_a_content_type_is_taken_by_its_usual_name_and_by_the_content_where_it_says_nothing(
    content_type: str, head: bytes, taken_as: str
) -> None:
    assert find_content_type(content_type, head) == taken_as


def test_an_image_and_an_archive_may_come_under_other_names_of_their_types() -> None:
    assert parse_prediction(Message(b"x", "image/jpg")).images == [b"x"]
    assert parse_prediction(Message(b"\x89PNG\r\n\x1a\n", "application/octet-stream")).ids == [None]
    assert parse_job(Message(b"PK\x03\x04", "application/x-zip")).body == b"PK\x03\x04"
    assert parse_dataset(Message(b"\x1f\x8b\x08", "application/octet-stream", headers={"name": "a"})).name == "a"


@pytest.mark.parametrize("deadline", [1_764_403_200_000, "1764403200000", 1.7e15])
def test_a_deadline_in_milliseconds_is_refused_with_what_was_found(deadline: HeaderValue) -> None:
    error = refused(parse_prediction, Message(b"x", "image/jpeg", headers={"deadline": deadline}))
    assert str(error) == (
        f"header deadline is {deadline!r}, which seems to be in milliseconds; expected Unix time in seconds"
    )


@pytest.mark.parametrize(
    ("parse", "body"),
    [(parse_dataset, b"{not json"), (parse_job, b"\xff\xfe\xfd"), (parse_shard, b""), (parse_dataset, b"[" * 100_000)],
)
def test_a_body_that_is_not_json_is_refused(parse: Callable[[Message], object], body: bytes) -> None:
    assert str(refused(parse, Message(body, "application/json"))).startswith("the body is not JSON: ")


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91" * 3000, b"\xdd\xff\xff\xff\xff", b"\xa2\xff\xff", b"\x01\x02"])
def test_a_body_that_is_not_msgpack_is_refused(body: bytes) -> None:
    assert str(refused(parse_prediction, Message(body, "application/msgpack"))).startswith(
        "the body is not MessagePack"
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [([1, 2], "a list of 2"), ("text", "'text'"), (7, "7"), (None, "None")],
)
def test_a_body_that_is_no_object_is_refused_with_what_it_is(body: object, found: str) -> None:
    expected = f"the body is {found}; expected an object with a schema"
    assert str(refused(parse_dataset, json_of(body))) == expected
    assert str(refused(parse_prediction, pack_of(body))) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"uri": "store:a"}, 'schema: missing; expected "schema": 1'),
        ({"schema": 2, "uri": "store:a"}, "schema is 2; expected 1"),
        ({"schema": "1", "uri": "store:a"}, "schema is '1'; expected 1"),
        ({"schema": True, "uri": "store:a"}, "schema is True; expected 1"),
    ],
)
def test_a_missing_or_unknown_schema_is_refused_as_such(body: object, words: str) -> None:
    error = refused(parse_dataset, json_of(body))
    assert error.code == "unsupported_schema"
    assert str(error) == words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "uri: missing"),
        ({"uri": ""}, r"uri: .*at least 1 character \(found ''\)"),
        ({"uri": 7}, r"uri: .*valid string \(found 7\)"),
        ({"uri": "x" * 5000}, r"uri: .*at most 4096 characters \(found 'xxx.*…\)"),
        ({"uri": "u", "colour": 1}, "'colour': unknown field; expected name, uri, sha256, params"),
        ({"uri": "u", "sha256": "abc"}, r"sha256: .*\[0-9a-fA-F\]\{64\}.* \(found 'abc'\)"),
        ({"uri": "u", "sha256": SHA256 + "\n"}, r"sha256: .*\[0-9a-fA-F\]\{64\}"),
        ({"uri": "u", "name": 7}, r"name: .*valid string \(found 7\)"),
        ({"uri": "u", "name": "n" * 201}, r"name: .*at most 200 characters"),
        ({"uri": "u", "params": [1, 2, 3]}, r"params: .*valid dictionary \(found a list of 3\)"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_what_was_found_and_expected(fields: dict[str, Any], words: str) -> None:
    error = refused(parse_dataset, json_of({"schema": 1, **fields}))
    assert re.match(words, str(error)), str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"epoch": 3}, "'epoch': unknown parameter"),
        ({"epochs": 0}, "epochs: found 0, expected a whole number, 1 to 1,000 or auto"),
        ({"epochs": "many"}, "epochs: found 'many', expected a whole number, 1 to 1,000 or auto"),
        ({"dropout": 1}, "dropout: found 1, expected a number, 0 to below 1"),
    ],
)
def test_a_training_parameter_that_is_wrong_is_refused_with_all_valid_ones(params: object, words: str) -> None:
    by_reference_ = json_of({"schema": 1, "uri": "store:a", "params": params})
    by_value = Message(b"PK", "application/zip", headers={"params": json.dumps(params)})
    for message in (by_reference_, by_value):
        error = refused(parse_dataset, message)
        assert error.code == "invalid_params"
        assert re.match(words, str(error)), str(error)
        assert str(error).endswith(f"Valid parameters: {', '.join(TrainingParams.model_fields)}")


@pytest.mark.parametrize("params", ["{not json", "[" * 100_000, "[1]", 7, True])
def test_params_in_a_header_that_are_no_json_object_are_refused(params: HeaderValue) -> None:
    error = refused(parse_dataset, Message(b"PK", "application/zip", headers={"params": params}))
    assert error.code == "invalid_params"
    assert str(error).startswith("params is ")


def test_a_job_takes_no_params() -> None:
    message = json_of({"schema": 1, "uri": "store:a", "params": {}})
    assert "a job takes no params" in str(refused(parse_job, message))


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        ({}, "images: missing"),
        ({"images": []}, r"images: .*at least 1 item.* \(found a list of 0\)"),
        ({"images": [{"id": 1, "data": b""}] * 257}, r"images: .*at most 256 items.* \(found a list of 257\)"),
        ({"images": b"jpeg"}, r"images: .*valid list \(found b'jpeg'\)"),
        ({"images": ["jpeg"]}, r"images\.0: .*\(found 'jpeg'\)"),
        ({"images": [{"id": 1, "data": b""}, {"id": 2}]}, r"images\.1\.data: missing"),
        ({"images": [{"data": b""}]}, r"images\.0\.id: missing"),
        ({"images": [{"id": 1, "data": "text"}]}, r"images\.0\.data: .*valid bytes \(found 'text'\)"),
        ({"images": [{"id": 1.5, "data": b""}]}, r"images\.0\.id: expected a text .*null \(found 1\.5\)"),
        ({"images": [{"id": True, "data": b""}]}, r"images\.0\.id: expected a text .*null \(found True\)"),
        ({"images": [{"id": "n" * 1001, "data": b""}]}, r"images\.0\.id: expected a text of at most 1000 "),
        ({"images": [{"id": 1, "data": b"", "x": 1}]}, r"'images\.0\.x': unknown field; expected id, data"),
        ({"images": [{"id": 1, "data": b""}], "x": 1}, "'x': unknown field; expected images"),
    ],
)
def test_a_pack_that_is_wrong_is_refused_with_the_place(pack: dict[str, Any], words: str) -> None:
    error = refused(parse_prediction, pack_of({"schema": 1, **pack}))
    assert re.match(words, str(error)), str(error)


def test_an_error_does_not_carry_megabytes_of_what_was_found() -> None:
    error = refused(parse_prediction, pack_of({"schema": 1, "images": b"\xff" * 1_000_000}))
    assert len(str(error)) < 300


@pytest.mark.parametrize("version", ["x", "-1", "", "3.0", 3.0, True, -3, "9" * 5000, "٣", "3\n"])
def test_a_version_that_is_no_number_is_refused(version: HeaderValue) -> None:
    words = str(refused(parse_prediction, image_with(model_version=version)))
    assert re.match(r"header model_version is .*; expected a version number such as 3", words)


@pytest.mark.parametrize("deadline", ["soon", "", "nan", "inf", float("nan"), float("inf"), True, 10**400])
def test_a_deadline_that_is_no_time_is_refused(deadline: HeaderValue) -> None:
    words = str(refused(parse_prediction, image_with(deadline=deadline)))
    assert re.match(r"header deadline is .*; expected Unix time in seconds", words)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"job_id": 1},
        {"job_id": job_id_of("m"), "shard": "1", "start": 0, "stop": 1},
        {"job_id": job_id_of("m"), "shard": -1},
        {"job_id": "../job-1", "shard": 1, "start": 0, "stop": 1},
    ],
)
def test_a_shard_that_is_wrong_is_refused(body: dict[str, Any]) -> None:
    refused(parse_shard, json_of({"schema": 1, **body}))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.dictionaries(
    st.sampled_from(["schema", "uri", "name", "sha256", "params", "images", "job_id", "shard", "start", "stop", "?"]),
    PLAIN | st.just(1) | st.just([{"id": "a", "data": "x"}]) | st.just({"epochs": 1}),
)
HEADERS = st.dictionaries(
    st.sampled_from(["name", "params", "model_version", "deadline"]),
    st.text(max_size=20) | st.integers() | st.floats() | st.booleans(),
)
TYPES = st.sampled_from(
    ["", "application/json", "application/msgpack", "application/zip", "image/png", "APPLICATION/JSON ; x", "☃"]
)
BODIES = (
    st.binary(max_size=200)
    | PLAIN.map(lambda value: json.dumps(value).encode())
    | FIELDS.map(lambda value: json.dumps({"schema": 1, **value}).encode())
    | FIELDS.map(lambda value: msgpack.packb({"schema": 1, **value}))
    | st.lists(st.binary(max_size=9), max_size=3).map(lambda parts: b"\x81\xa6schema\x01" + b"".join(parts))
)


@given(body=BODIES, content_type=TYPES, headers=HEADERS)
def test_whatever_comes_in_a_parser_takes_it_or_calls_it_invalid(
    body: bytes, content_type: str, headers: dict[str, HeaderValue]
) -> None:
    message = Message(body, content_type, headers=headers)
    for parse in PARSERS:
        with contextlib.suppress(InvalidMessage):
            parse(message)


# -- what goes out


@given(keys=st.lists(st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20), min_size=1, max_size=5))
def test_whatever_id_an_image_may_have_comes_back_in_the_reply(keys: list[str | int | None]) -> None:
    request = pack_message([(key, b"") for key in keys], reply_to="somewhere")
    good, bad = prediction(None, 0.971), prediction_error(None, InvalidImage("found \x00ü☃, expected a face"))
    entries = [{**entry, "id": key} for key, entry in zip(parse_prediction(request).ids, (good, bad) * 3, strict=False)]
    (reply,) = prediction_reply(request, {"name": "gender", "version": 3}, entries)
    model = {"name": "gender", "version": 3}
    assert json.loads(reply.message.body) == {"schema": 1, "model": model, "predictions": entries}
    assert [entry["id"] for entry in entries] == keys


def test_the_same_message_makes_the_same_run_and_job_and_another_makes_others() -> None:
    assert run_id_of("m1") == run_id_of("m1") != run_id_of("m2")
    assert job_id_of("m1") == job_id_of("m1") != job_id_of("m2")
    assert re.fullmatch("run-[0-9a-f]{12}", run_id_of("m1"))
    assert re.fullmatch("job-[0-9a-f]{12}", job_id_of("any text at all, ü"))


@pytest.mark.parametrize(
    ("probability", "gender", "confidence"),
    [(0.0, "male", 1.0), (0.4999, "male", 0.5001), (0.5, "female", 0.5), (0.971, "female", 0.971), (1.0, "female", 1)],
)
def test_confidence_is_the_probability_of_the_gender_named(probability: float, gender: str, confidence: float) -> None:
    entry = prediction("a", probability)
    assert entry == {"id": "a", "gender": gender, "probability_female": probability, "confidence": confidence}


def test_an_image_without_a_prediction_carries_its_error() -> None:
    entry = prediction_error(None, InvalidImage("truncated"))
    assert entry == {"id": None, "error": {"code": "invalid_image", "message": "truncated"}}


def test_a_reply_goes_where_it_was_asked_for_under_its_correlation() -> None:
    asked = Message(b"", "x", "m1", reply_to="inbox")
    (reply,) = json_reply(asked, {"status": "accepted"})
    assert (reply.queue, reply.message.correlation_id, reply.message.content_type) == (
        "inbox",
        "m1",
        "application/json",
    )
    assert json.loads(reply.message.body) == {"schema": 1, "status": "accepted"}
    correlated = Message(b"", "x", "m1", correlation_id="c1", reply_to="inbox")
    assert json_reply(correlated, {})[0].message.correlation_id == "c1"


def test_nobody_is_answered_who_did_not_ask() -> None:
    assert json_reply(Message(b"", "x"), {"status": "accepted"}) == []


def test_times_are_utc_to_the_millisecond_and_in_the_order_of_text() -> None:
    first = now_iso()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first)
    seconds = calendar.timegm(time.strptime(first[:19], "%Y-%m-%dT%H:%M:%S"))
    assert abs(time.time() - seconds) < 10
    assert first <= now_iso()
