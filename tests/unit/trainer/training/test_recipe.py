from __future__ import annotations

from typing import NoReturn

import pytest
import torch

from shared.errors import InvalidMessage
from shared.params import TrainingParams
from trainer.training.device import computes_bfloat16
from trainer.training.recipe import MAX_EPOCHS, MIN_EPOCHS, VALIDATION_COST, Recipe, decide

CPU = torch.device("cpu")


def unasked(_: Recipe) -> NoReturn:
    raise AssertionError("the speed was measured where it is not needed")


def decided(
    faces: int = 10_000,
    speed: float | None = None,
    *,
    helps: bool = False,
    validation: int = 0,
    start_mirrors: bool = False,
    **params: object,
) -> Recipe:
    return decide(
        TrainingParams.parse(params),
        faces=faces,
        device=CPU,
        throughput=unasked if speed is None else lambda _: speed,
        starter_helps=lambda: helps,
        validation=validation,
        start_mirrors=start_mirrors,
    )


def untried() -> NoReturn:
    raise AssertionError("the starter was tried where it is not needed")


def test_what_the_user_chose_stays() -> None:
    recipe = decided(network="reference", epochs=3, batch_size=17, learning_rate=0.5)
    assert (recipe.network, recipe.epochs, recipe.batch_size, recipe.learning_rate) == ("reference", 3, 17, 0.5)


def test_fewer_faces_are_shown_more_often_to_a_smaller_network() -> None:
    few, many, lots = decided(500), decided(12_000), decided(1_000_000)
    assert MAX_EPOCHS == few.epochs > many.epochs > lots.epochs == MIN_EPOCHS
    assert (few.network, many.network) == ("small", "compact")
    assert few.batch_size < many.batch_size


def test_few_faces_never_stop_training_early_unless_the_user_says_so() -> None:
    assert decided(1_999).patience >= decided(1_999).epochs
    assert decided(2_000).patience == 12
    assert decided(500, patience=5).patience == 5


def seconds(recipe: Recipe, faces: int, validation: int, speed: float) -> float:
    return recipe.epochs * (faces + validation * VALIDATION_COST) / speed


@pytest.mark.parametrize("validation", [0, 1_250, 6_000])
@pytest.mark.parametrize("budget_s", [60, 120, 180])
def test_a_budget_of_time_is_used_and_kept_validation_included(budget_s: float, validation: int) -> None:
    recipe = decided(10_000, 400.0, budget_s=budget_s, validation=validation)
    assert 1 < recipe.epochs < decided(10_000).epochs
    longer = recipe.model_copy(update={"epochs": recipe.epochs + 1})
    assert seconds(recipe, 10_000, validation, 400.0) <= budget_s < seconds(longer, 10_000, validation, 400.0)


def test_a_budget_shorter_than_an_epoch_still_trains_one_and_a_large_one_trains_no_longer_than_helps() -> None:
    assert decided(10_000, 400.0, budget_s=1).epochs == 1
    assert decided(10_000, 400.0, budget_s=1e6).epochs == decided(10_000).epochs


def test_epochs_asked_for_are_trained_whatever_the_budget() -> None:
    assert decided(10_000, epochs=30, budget_s=1).epochs == 30


def test_networks_mirror_from_random_weights_but_for_the_reference_unless_told_otherwise() -> None:
    assert decided(network="compact", init="scratch").mirror
    assert not decided(init="starter").mirror
    assert decided(init="starter", mirror=True).mirror
    assert decided(init="gender:3", start_mirrors=True).mirror
    assert not decided(network="reference").mirror
    assert decided(network="reference", mirror=True).mirror
    assert not decided(mirror=False).mirror
    assert not decided(network="compact", init="scratch", distil="gender:3").mirror
    assert decided(network="compact", init="scratch", distil="gender:3", mirror=True).mirror
    assert decided(init="gender:3", distil="gender:3", start_mirrors=True).mirror


def test_the_reference_cannot_be_taught() -> None:
    with pytest.raises(InvalidMessage, match=r"distil is gender:3; the network reference cannot be taught"):
        decided(network="reference", init="scratch", distil="gender:3")


def test_training_computes_in_what_the_device_is_built_for_unless_told_otherwise() -> None:
    assert decided().precision == ("bfloat16" if computes_bfloat16(CPU) else "float32")
    for precision in ("float32", "bfloat16"):
        assert decided(precision=precision).precision == precision


def test_a_recipe_fits_the_parameters_that_it_was_decided_from_and_no_others() -> None:
    params = TrainingParams.parse({"batch_size": 17})
    recipe = decide(params, faces=100, device=CPU, throughput=unasked, starter_helps=lambda: False)
    assert recipe.fits(params)
    assert recipe.fits(TrainingParams.parse({"batch_size": 17, "network": recipe.network}))
    assert not recipe.fits(TrainingParams.parse({"batch_size": 18}))
    assert not recipe.fits(TrainingParams.parse({"batch_size": 17, "dropout": 0.1}))


def test_where_the_starter_helps_training_begins_from_it_in_small_steps() -> None:
    from_starter, from_scratch = decided(300, helps=True), decided(300)
    assert (from_starter.init, from_starter.network, from_starter.learning_rate) == ("starter", "compact", 0.00005)
    assert (from_scratch.init, from_scratch.network, from_scratch.learning_rate) == ("scratch", "small", 0.004)
    assert from_starter.epochs < from_scratch.epochs


def test_from_the_starter_steps_grow_with_the_faces() -> None:
    rates = [decided(faces, helps=True).learning_rate for faces in (200, 1_000, 2_500, 5_000, 20_000)]
    assert rates == [0.00005, 0.0001, 0.00025, 0.0005, 0.0005]


@pytest.mark.parametrize("params", [{"init": "scratch"}, {"network": "large"}])
def test_the_starter_is_not_tried_where_it_is_not_wanted_or_does_not_fit(params: dict[str, str]) -> None:
    asked = TrainingParams.parse(params)
    assert decide(asked, faces=300, device=CPU, throughput=unasked, starter_helps=untried).init == "scratch"


def test_the_starter_is_used_untried_where_it_is_asked_for() -> None:
    asked = TrainingParams.parse({"init": "starter"})
    assert decide(asked, faces=300, device=CPU, throughput=unasked, starter_helps=untried).init == "starter"


def test_named_weights_bring_their_network_and_refuse_another() -> None:
    asked = TrainingParams.parse({"init": "gender:3"})
    recipe = decide(asked, faces=300, device=CPU, throughput=unasked, starter_helps=untried, start_network="large")
    assert (recipe.init, recipe.network) == ("gender:3", "large")
    assert recipe.fits(asked)
    with pytest.raises(InvalidMessage, match="init is gender:3, which needs network compact; found network small"):
        decided(init="gender:3", network="small")


def test_the_starter_with_another_network_is_refused_and_both_are_named() -> None:
    with pytest.raises(InvalidMessage, match="needs network compact; found network large"):
        decided(init="starter", network="large")
