"""The shapes of the API's answers, for its description: JSON Schema, as OpenAPI 3.1 takes it."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from shared.errors import CODES
from shared.faces.labels import GENDERS
from shared.params import TrainingParams
from shared.records.evaluation import Evaluation
from shared.records.jobs import Job
from shared.records.model_card import ModelCard
from shared.records.record import Fault
from shared.records.runs import HISTORY_COLUMNS, Run

REF: Final = "#/components/schemas/{model}"

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer"}
_NUMBER: Final = {"type": "number"}
_SHARE: Final = {"type": "number", "minimum": 0, "maximum": 1}


def schemas() -> dict[str, Any]:
    """Returns every schema by name."""
    records = _of_models(TrainingParams, Evaluation, ModelCard, Fault, Run, Job)
    run, job = ({**records.pop(name), "additionalProperties": False} for name in ("Run", "Job"))
    records["Fault"]["properties"]["code"]["enum"] = list(CODES)
    return {
        **records,
        "Error": fields({"error": _ref("Fault")}),
        "Damaged": fields({"file": _TEXT, "error": _ref("Fault")}),
        "RunAccepted": fields({"run_id": _TEXT}),
        "JobAccepted": fields({"job_id": _TEXT}),
        "Count": fields({"count": _WHOLE}),
        "Sample": fields(
            {
                "running": {"type": "boolean"},
                "done": _WHOLE,
                "total": _WHOLE,
                "run_id": _maybe(_TEXT),
                "error": _maybe(_TEXT),
            }
        ),
        "RunRecord": run,
        "Run": _with(
            run,
            history=_many(fields(dict.fromkeys(HISTORY_COLUMNS, _NUMBER))),
            evaluation=_maybe(_ref("Evaluation")),
        ),
        "Runs": fields({"runs": _many(_ref("RunRecord")), "total": _WHOLE, "damaged": _many(_ref("Damaged"))}),
        "JobRecord": job,
        "Job": _with(job, progress=fields({"done": _WHOLE, "total": _WHOLE})),
        "Jobs": fields({"jobs": _many(_ref("JobRecord")), "total": _WHOLE, "damaged": _many(_ref("Damaged"))}),
        "AliasNames": fields({name: _maybe(_WHOLE) for name in ("champion", "previous", "challenger")}),
        "Aliases": fields({"aliases": _ref("AliasNames")}),
        "Models": fields(
            {
                "aliases": _ref("AliasNames"),
                "shadow": _maybe(_ref("Shadow")),
                "models": _many(_ref("ModelSummary")),
                "total": _WHOLE,
                "damaged": _many(_ref("Damaged")),
            }
        ),
        "Shadow": fields(
            {
                "images": _WHOLE,
                "failed": _WHOLE,
                "agreement": _maybe(_SHARE),
                "mean_difference": _maybe(_SHARE),
                "time_ratio": _maybe(_NUMBER),
            }
        ),
        "ModelSummary": fields(
            {
                "name": _TEXT,
                "version": _WHOLE,
                "run_id": _TEXT,
                "created": _time(),
                "dataset": _ref("CardDataset"),
                "metrics": _numbers(),
                "params": {"type": "object"},
                "file": _ref("CardFile"),
            }
        ),
        "Predictions": fields(
            {"schema": {"const": 1}, "model": _maybe(_ref("ModelRef")), "predictions": _many(_ref("Prediction"))}
        ),
        "Prediction": {"oneOf": [_ref("Answer"), _ref("NoAnswer")]},
        "Answer": fields(
            {
                "id": _maybe(_TEXT),
                "gender": {"type": "string", "enum": list(GENDERS)},
                "probability_female": _SHARE,
                "confidence": {**_SHARE, "minimum": 0.5},
            }
        ),
        "NoAnswer": fields({"id": _maybe(_TEXT), "error": _ref("Fault")}),
        "DeadLetters": fields({"dead_letters": _many(_ref("DeadLetter"))}),
        "DeadLetter": fields(
            {
                "dead_id": _TEXT,
                "reason": _TEXT,
                "origin": _TEXT,
                "delivery_count": _WHOLE,
                "message_id": _maybe(_TEXT),
                "content_type": _maybe(_TEXT),
                "size_bytes": _WHOLE,
            }
        ),
        "Status": fields(
            {
                # What a heartbeat tells differs from service to service.
                "workers": _many(
                    fields(
                        {"service": _TEXT, "worker": _TEXT, "silent_s": _NUMBER, "alive": {"type": "boolean"}},
                        others=True,
                    )
                ),
                "queues": {
                    "type": "object",
                    "additionalProperties": fields({"ready": _WHOLE, "unacknowledged": _maybe(_WHOLE)}),
                },
                "speed": fields(
                    {
                        "images_per_second": _NUMBER,
                        "latency_p50_ms": _maybe(_NUMBER),
                        "latency_p99_ms": _maybe(_NUMBER),
                    }
                ),
                "aliases": _ref("AliasNames"),
            }
        ),
        "OpenApi": fields({"openapi": _TEXT, "paths": {"type": "object"}}, others=True),
    }


def fields(
    properties: dict[str, Any], *, optional: dict[str, Any] | None = None, others: bool = False
) -> dict[str, Any]:
    """Returns the schema of an object with these fields, all of them always there, and perhaps others."""
    return {
        "type": "object",
        "properties": properties | (optional or {}),
        "required": list(properties),
        **({} if others else {"additionalProperties": False}),
    }


def _with(schema: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """Returns the schema of an object with more fields, all of them always there."""
    return {
        **schema,
        "properties": {**schema["properties"], **properties},
        "required": [*schema["required"], *properties],
    }


def _of_models(*models: type[BaseModel]) -> dict[str, Any]:
    """Returns the schemas of pydantic models and of what they refer to, by class name."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=REF, mode="serialization")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REF.format(model=name)}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _many(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


def _numbers() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _NUMBER}


def _time() -> dict[str, Any]:
    return {"type": "string", "format": "date-time"}
