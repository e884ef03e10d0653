from __future__ import annotations

import pytest

from shared.errors import InvalidMessage
from shared.params import TrainingParams


@pytest.mark.parametrize("given", [None, {}, "{}", b"{}"])
def test_nothing_given_means_all_defaults(given: object) -> None:
    assert TrainingParams.parse(given) == TrainingParams()


def test_a_mapping_and_its_json_text_are_the_same_and_text_values_are_read() -> None:
    expected = TrainingParams(epochs=3, learning_rate=0.01, augment=False)
    assert TrainingParams.parse({"epochs": 3, "learning_rate": 0.01, "augment": False}) == expected
    assert TrainingParams.parse('{"epochs": 3, "learning_rate": 0.01, "augment": false}') == expected
    assert TrainingParams.parse({"epochs": "3", "learning_rate": "0.01", "augment": "false"}) == expected


def test_parameters_survive_the_way_through_json_types() -> None:
    params = TrainingParams(epochs=3, dropout=0.25, promote=False)
    assert TrainingParams.parse(params.as_dict()) == params


@pytest.mark.parametrize("field", ["budget_s", "learning_rate", "weight_decay", "dropout", "auxiliary", "averaging"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "-1"])
def test_no_number_that_is_no_number_reaches_the_training(field: str, value: str) -> None:
    with pytest.raises(InvalidMessage, match=field):
        TrainingParams.parse(f'{{"{field}": {value}}}')


def test_a_budget_that_no_training_takes_is_refused() -> None:
    assert TrainingParams.parse({"budget_s": 30 * 24 * 3600}).budget_s == 2_592_000
    with pytest.raises(InvalidMessage, match=r"budget_s: found 1e\+306, expected a number, above 0 to 2,592,000"):
        TrainingParams.parse({"budget_s": 1e306})


@pytest.mark.parametrize("init", ["auto", "starter", "scratch", "gender:12", "file:///srv/weights/starter.npz"])
def test_training_begins_from_named_weights(init: str) -> None:
    assert TrainingParams.parse({"init": init}).init == init


@pytest.mark.parametrize(
    "init", ["", "/srv/starter.npz", "gender:", "gender:x", "file:///srv/starter.pt", "s3://b/x.npz"]
)
def test_weights_named_in_another_way_are_refused(init: str) -> None:
    with pytest.raises(InvalidMessage, match="init: found"):
        TrainingParams.parse({"init": init})


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(InvalidMessage) as caught:
        TrainingParams.parse({"epochs": 0, "dropout": 2, "colour": 1})
    assert caught.value.code == "invalid_params"
    for name in ("epochs: ", "dropout: ", "'colour': unknown parameter", "Valid parameters: init, network, epochs"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": "many"}, "epochs: found 'many', expected a whole number, 1 to 1,000 or auto."),
        ({"epochs": 2.5}, "epochs: found 2.5, expected a whole number, 1 to 1,000 or auto."),
        ({"budget_s": 0}, "budget_s: found 0, expected a number, above 0 to 2,592,000."),
        ({"dropout": [1]}, "dropout: found a list of 1, expected a number, 0 to below 1."),
        ({"schedule": "flat"}, "schedule: found 'flat', expected cosine or constant."),
        ({"mirror": "x"}, "mirror: found 'x', expected true, false or auto."),
        (
            {"init": "gender:0"},
            "init: found 'gender:0', expected auto, starter, scratch or gender:VERSION or file:///PATH.npz.",
        ),
        ({"augment": "x"}, "augment: found 'x', expected true or false."),
        ({"network": "huge"}, "network: found 'huge', expected small, compact, large, reference or auto."),
    ],
)
def test_a_fault_is_one_sentence_with_what_was_found_and_the_range(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        TrainingParams.parse(given)
    assert str(caught.value).startswith(f"{said} Valid parameters: ")


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="7"):
        TrainingParams.parse({7: 1})


def test_what_was_found_is_cut_short() -> None:
    with pytest.raises(InvalidMessage) as caught:
        TrainingParams.parse({"epochs": "9" * 100_000, "k" * 100_000: 1})
    assert len(str(caught.value)) < 600


def test_every_parameter_says_what_it_does() -> None:
    assert [name for name, field in TrainingParams.model_fields.items() if not field.description] == []
