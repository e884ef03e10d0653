import pytest
import torch
from torch import nn

from shared.params import TrainingParams
from trainer.training.model import NETWORKS, build_network, measure_cost
from trainer.training.recipe import decide


@pytest.mark.parametrize("faces", [100, 10_000, 1_000_000])
def test_the_network_chosen_for_the_user_costs_a_quarter_of_the_reference_at_most(faces: int) -> None:
    recipe = decide(
        TrainingParams(),
        faces=faces,
        device=torch.device("cpu"),
        throughput=lambda _: 100.0,
        starter_helps=lambda: False,
    )
    default = build_network(recipe.network, dropout=0.4)
    assert (
        measure_cost(default).multiply_adds <= measure_cost(build_network("reference", dropout=0.4)).multiply_adds / 4
    )


def test_the_reference_network_weighs_what_the_design_says() -> None:
    weight = measure_cost(build_network("reference", dropout=0.4))
    assert weight.parameters == 2_747_649
    assert weight.multiply_adds == pytest.approx(176e6, rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_network_gives_one_logit_a_face(name: str, count: int) -> None:
    logits = build_network(name, dropout=0.4).eval()(torch.rand(count, 1, 128, 128))
    assert logits.shape == (count,)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_may_be_asked_for_in_the_parameters(name: str) -> None:
    assert TrainingParams.parse({"network": name}).network == name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_names_the_side_that_it_shrinks_whole_faces_to(name: str) -> None:
    network = build_network(name, dropout=0.4).eval()
    faces = torch.rand(2, 1, 128, 128)
    small = nn.functional.interpolate(faces, (network.side, network.side), mode="bilinear", antialias=True)
    assert torch.allclose(network.shrink(faces), small, atol=1e-5)
    assert torch.allclose(network.decide(network.embed(small)), network(faces), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_mirrors_gives_a_face_and_its_mirror_image_the_mean_of_their_logits(name: str) -> None:
    network = build_network(name, dropout=0.4, mirror=True).eval()
    faces = torch.rand(3, 1, 128, 128)
    both = network(faces)
    assert torch.allclose(network(faces.flip(-1)), both, atol=1e-5)
    network.mirror = False
    assert not torch.allclose(network(faces), both, atol=1e-5)
    assert torch.allclose((network(faces) + network(faces.flip(-1))) / 2, both, atol=1e-5)


def test_dropout_has_the_rate_asked_for() -> None:
    rates = [part.p for part in build_network("reference", dropout=0.25).modules() if isinstance(part, nn.Dropout)]
    assert rates == [0.25]


@pytest.mark.parametrize("training", [True, False])
def test_counting_costs_leaves_the_mode_as_it_was(training: bool) -> None:
    network = build_network("reference", dropout=0.4).train(training)
    measure_cost(network)
    assert network.training is training


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'resnet'; expected one of .*reference"):
        build_network("resnet", dropout=0.4)
