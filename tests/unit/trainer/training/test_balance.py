import numpy as np
import pytest
import torch

from trainer.training.balance import warn_of_imbalance, weigh_genders
from trainer.training.calibrate import calibrated_loss
from trainer.training.loss import MultiTaskLoss
from trainer.training.model import build_network


def labels(men: int, women: int) -> np.ndarray:
    return np.array([0] * men + [1] * women, np.uint8)


@pytest.mark.parametrize(("men", "women"), [(50, 50), (80, 20), (20, 80), (10, 0)])
def test_data_that_is_not_highly_unbalanced_has_neither_weights_nor_a_warning(men: int, women: int) -> None:
    assert weigh_genders(labels(men, women)) is None
    assert warn_of_imbalance(labels(men, women)) is None


def test_weights_give_both_genders_the_same_sum() -> None:
    weights = weigh_genders(labels(95, 4))
    assert weights is not None
    assert 95 * weights[0] == pytest.approx(4 * weights[1])
    assert 95 * weights[0] + 4 * weights[1] == pytest.approx(99)


def test_the_warning_counts_both_genders_and_says_what_to_do() -> None:
    assert warn_of_imbalance(labels(95, 4)) == (
        "the dataset is highly unbalanced: 4 female and 95 male training faces. Both genders weigh the same in "
        "training, but a model learns little about female faces from so few: add more of them"
    )
    assert "3 male and 95 female" in str(warn_of_imbalance(labels(3, 95)))


def test_the_loss_weighs_each_face_by_its_gender() -> None:
    network = build_network("small", dropout=0.0).eval()
    faces = torch.rand(4, 1, 80, 80, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    with torch.inference_mode():
        each = [MultiTaskLoss(network, 0.0).eval()(faces[[i]], targets[[i]])[1].item() for i in range(4)]
        _, loss, _ = MultiTaskLoss(network, 0.0, (0.5, 2.5)).eval()(faces, targets)
    assert loss.item() == pytest.approx((0.5 * sum(each[:3]) + 2.5 * each[3]) / 4, rel=1e-4)


def test_with_weights_an_epoch_that_predicts_one_gender_only_is_not_the_best() -> None:
    truth = labels(18, 2)
    constant = np.full(20, -4, np.float32)
    fair = np.where(truth > 0, 1.0, -1.0).astype(np.float32)
    fair[:3] = 1.0  # wrong about three men, and right about both women
    assert calibrated_loss(fair, truth, (20 / 36, 5.0)) < calibrated_loss(constant, truth, (20 / 36, 5.0))
