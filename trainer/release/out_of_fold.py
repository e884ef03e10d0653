"""What each face's label should be, by a classifier that has not learned from that label: wrong labels stand out by it.

A network learns the wrong labels of its training faces by heart, so it is no judge of them. Training it again for each
fold of the data would cost as much again for each. So the folds are made of something cheaper: logistic regression on
the starter's features of the faces, which no label of this dataset has shaped.

The faces that the network has not learned from are judged by the network and by that classifier alike. A labeller's
habit misleads the network there too: where every second man with an earring is labelled female, it learns that, and
calls such a label likely. A linear classifier on features that were learned elsewhere hardly can.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.release.features import build_classifier

_FOLDS: Final = 5


def predict_out_of_fold(
    dataset: Dataset, probabilities: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns the probability of female of each face, by weights that have not learned from its label: float32 (N,).

    For the faces of the training part that is cross-validation on the starter's features, with faces that look alike in
    one fold: a wrong label stands on each copy of a photo, and the copies would vouch for it. For all others it is the
    mean of what the network says, and of what the same classifier says that has learned from the training part. Kohavi,
    "A Study of Cross-Validation and Bootstrap" (IJCAI 1995), for the stratified folds; Northcutt, Jiang and Chuang,
    "Confident Learning" (JAIR 2021), for judging labels by such probabilities.

    Args:
        dataset: with the labels that the network was trained on.
        probabilities: float32 (N,), of female, by the trained network.
        features: float32 (N, width), of all faces, from `embed_faces`.
    """
    # It takes a second to load, which a trainer that starts should not wait for.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict  # noqa: PLC0415

    train = dataset.part("train")
    labels = dataset.labels[train]
    out_of_fold = probabilities.copy()
    alone = len(dataset.rows)  # a face that looks like no other is a group of its own
    groups = np.array([dataset.alike.get(int(index), alone + int(index)) for index in train])
    folds = min(_FOLDS, *(len(np.unique(groups[labels == gender])) for gender in (0, 1)))
    if folds < 2:
        return out_of_fold  # a single face of a gender has no other to be told by
    classifier = build_classifier(labels)
    if dataset.alike:
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(features[train], labels, groups)
    else:  # likewise, and much sooner
        splits = StratifiedKFold(folds, shuffle=True, random_state=0).split(features[train], labels)
    of_train = features[train]
    told = cross_val_predict(classifier, of_train, labels, cv=list(splits), method="predict_proba")
    out_of_fold[train] = told[:, 1]
    others = np.setdiff1d(np.arange(len(features)), train)
    if len(others):
        told = classifier.fit(of_train, labels).predict_proba(features[others])[:, 1]
        out_of_fold[others] = (probabilities[others] + told) / 2
    return out_of_fold
