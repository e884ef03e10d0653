"""The training parameters: one typed, validated, documented set, the same in messages, HTTP and on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import InvalidMessage, short_repr
from shared.runtime.field_docs import expected_of

EPOCH_LIMIT: Final = 1000
Auto = Literal["auto"]
"""Leaves a choice to the recipe, which knows how many faces there are and what they are trained on."""
_VERSION: Final = r"gender:([1-9][0-9]{0,8})"
StartUri = Annotated[
    str, Field(pattern=rf"^({_VERSION}|file:///.+\.npz)$", description="gender:VERSION or file:///PATH.npz")
]
"""Names weights to begin from: a registered model's, or a file's."""
VersionUri = Annotated[str, Field(pattern=rf"^{_VERSION}$", description="gender:VERSION")]
"""Names a registered model."""
Network = Literal["small", "compact", "large", "reference"]
Precision = Literal["float32", "bfloat16"]


class TrainingParams(BaseModel):
    """What a dataset message's `params` may name; each field's description is its line in docs/reference.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    init: Literal["auto", "starter", "scratch"] | StartUri = Field(
        "auto",
        description="What training begins from: `starter`, weights that have seen faces, or `scratch`, random ones; "
        "`auto` takes the starter where it tells the training faces apart clearly better than guessing. Also "
        "`gender:VERSION`, a registered model, or `file:///FOLDER/starter.npz`, what `make pretrain` wrote into an "
        "allowed root",
    )
    network: Network | Auto = Field(
        "auto",
        description="The network to train; `auto` takes the starter's, `compact`; from scratch and for fewer than "
        "2,000 faces `small`",
    )
    epochs: Annotated[int, Field(ge=1, le=EPOCH_LIMIT)] | Auto = Field(
        "auto", description="The most passes over the training faces; `auto` takes more where there are few"
    )
    budget_s: float | None = Field(
        None, gt=0, le=30 * 24 * 3600, description="Seconds that training may take: `auto` epochs become as many as fit"
    )
    patience: Annotated[int, Field(ge=1, le=EPOCH_LIMIT)] | Auto = Field(
        "auto",
        description="Epochs without a better validation loss before stopping early; `auto`: 12, but none where there "
        "are few faces",
    )
    batch_size: Annotated[int, Field(ge=2, le=4096)] | Auto = Field("auto", description="Faces in one training step")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        "auto",
        description="AdamW's largest step size; `auto`: 0.004 from scratch; from the starter 0.00005 to 0.0005, by the "
        "number of faces",
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="How the step size goes: warm-up and cosine, or constant"
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decay of the weights in a step")
    dropout: float = Field(0.4, ge=0, lt=1, description="Share of the features dropped while training")
    augment: bool = Field(True, description="Flip, shift, scale, turn and relight the training faces")
    auxiliary: float = Field(
        0.3, ge=0, le=10, description="Weight of learning age band and ethnicity as well; dropped at export"
    )
    distil: Literal["none"] | VersionUri = Field(
        "none",
        description="A registered model, `gender:VERSION`, that teaches this one, which learns from what the teacher "
        "says of each face beside its label: a larger network that was trained on the same dataset, for example",
    )
    averaging: float = Field(
        0.998, ge=0, lt=1, description="Decay of the moving average of the weights that is kept; 0 keeps the last"
    )
    mirror: bool | Auto = Field(
        "auto",
        description="Answer with the mean of a face and its mirror image; `auto`: from random weights with every "
        "network but `reference`, unless another model teaches; from a registered model as that does; from the "
        "starter not",
    )
    precision: Precision | Auto = Field(
        "auto", description="What training computes in; `auto`: bfloat16 where the device is built for it"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="What all random choices of a run start from")
    quantize: bool = Field(
        True,
        description="Add variants in int8 for CPUs and float16 for GPUs, each kept only where it holds the accuracy",
    )
    promote: bool = Field(True, description="Let the gate promote the model where it beats the champion")

    @classmethod
    def parse(cls, given: object) -> TrainingParams:
        """Validates parameters from outside.

        Args:
            given: a mapping, or the JSON text of one; None means all defaults.

        Raises:
            InvalidMessage: code `invalid_params`, naming each fault and all valid parameters.
        """
        if given is None:
            return cls()
        if isinstance(given, str | bytes):
            try:
                given = json.loads(given)
            except (ValueError, RecursionError) as error:
                raise InvalidMessage(f"params is not JSON: {error}", code="invalid_params") from None
        if not isinstance(given, Mapping):
            raise InvalidMessage(f"params is {short_repr(given)}; expected an object", code="invalid_params")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            # Of a union, pydantic tells what is wrong with each alternative.
            found = {fault["loc"][0]: fault for fault in error.errors()}
            faults = "; ".join(
                f"{name}: found {short_repr(fault['input'])}, expected {expected_of(cls.model_fields[str(name)])}"
                if name in cls.model_fields
                else f"{short_repr(name)}: unknown parameter"
                for name, fault in found.items()
            )
            raise InvalidMessage(
                f"{faults}. Valid parameters: {', '.join(cls.model_fields)}", code="invalid_params"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Returns the parameters as JSON types."""
        return self.model_dump(mode="json")


def named_version(uri: str) -> int | None:
    """Returns the registered version that `init`, `distil` or a card names; None where they name something else."""
    found = re.fullmatch(_VERSION, uri)
    return int(found[1]) if found else None
