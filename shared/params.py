"""The training parameters: one typed, validated, documented set, the same in messages, HTTP and on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import InvalidMessage, shown


class TrainingParams(BaseModel):
    """What a dataset message's `params` may name; each field's description is its line in the README."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str = Field(
        "compact",
        pattern="^(compact|reference)$",
        description="The network to train: `compact`, or the plain `reference` of four convolutions",
    )
    epochs: int = Field(20, ge=1, le=1000, description="The most passes over the training faces")
    patience: int = Field(8, ge=1, le=1000, description="Epochs without a better validation loss before stopping early")
    batch_size: int = Field(32, ge=2, le=4096, description="Faces in one training step")
    learning_rate: float = Field(0.002, gt=0, le=1, description="Adam's largest step size")
    schedule: str = Field(
        "cosine", pattern="^(cosine|constant)$", description="How the step size goes: warm-up and cosine, or constant"
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decay of the weights in a step")
    dropout: float = Field(0.4, ge=0, lt=1, description="Share of the dense layer's inputs dropped while training")
    augment: bool = Field(True, description="Flip, shift, scale, turn and relight the training faces")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="What all random choices of a run start from")
    quantize: bool = Field(True, description="Add an int8 sibling, kept only where it holds the accuracy")
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
            raise InvalidMessage(f"params is {shown(given)}; expected an object", code="invalid_params")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            faults = "; ".join(
                f"{shown(fault['loc'][0])}: unknown parameter"
                if fault["type"] == "extra_forbidden"
                else f"{fault['loc'][0]}: {fault['msg']} (found {shown(fault['input'])})"
                for fault in error.errors()
            )
            raise InvalidMessage(
                f"{faults}. Valid parameters: {', '.join(cls.model_fields)}", code="invalid_params"
            ) from None

    def as_dict(self) -> dict[str, Any]:
        """Returns the parameters as JSON types."""
        return self.model_dump(mode="json")
