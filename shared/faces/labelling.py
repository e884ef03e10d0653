"""Where a dataset's labels come from: what a message may say of it, and what was recognised."""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared.errors import InvalidMessage, short_repr

LabelSource = Literal["names", "folders", "table"]
_LIST: Final = Field(max_length=100)


class LabelSpec(BaseModel):
    """The `labels` block of a dataset message: where guessing fails, it says what to take.

    Attributes:
        source: where the labels are taken from; None takes what labels the most files.
        table: the name of the table in the archive; None takes every table that fits.
        file: the table's column that names the files.
        gender: the table's column of the gender.
        age: the table's column of the age.
        ethnicity: the table's column of the ethnicity.
        male: folders, or values of the gender's column, that mean male.
        female: folders or values that mean female.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: LabelSource | None = None
    table: str | None = None
    file: str | None = None
    gender: str | None = None
    age: str | None = None
    ethnicity: str | None = None
    male: Annotated[tuple[str, ...], _LIST] = ()
    female: Annotated[tuple[str, ...], _LIST] = ()

    @property
    def names_columns(self) -> bool:
        """Whether it names a column of a table."""
        return any(column is not None for column in (self.file, self.gender, self.age, self.ethnicity))

    @field_validator("male", "female", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Takes a list, or a text with commas, as a command line gives it; numbers are taken as text."""
        if isinstance(value, int):
            value = str(value)
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return tuple(map(str, value)) if isinstance(value, list) else value

    @classmethod
    def parse(cls, value: object) -> LabelSpec | None:
        """Returns the specification that a message gives: an object, or its JSON text; None for none.

        Raises:
            InvalidMessage: code `invalid_params`, with the field, what was found and what may stand there.
        """
        if isinstance(value, str | bytes):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise InvalidMessage(
                    f"labels: found {short_repr(value)}, expected a JSON object", code="invalid_params"
                ) from None
        if value is None or value == {}:
            return None
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, ("labels", *fault["loc"])))
            expected = f"one of {', '.join(cls.model_fields)}" if fault["type"] == "extra_forbidden" else fault["msg"]
            raise InvalidMessage(
                f"{where}: found {short_repr(fault['input'])}, expected {expected}", code="invalid_params"
            ) from None

    def as_dict(self) -> dict[str, object]:
        """Returns what it says, as JSON types, without what it leaves open."""
        return self.model_dump(mode="json", exclude_defaults=True)


class LabelValue(BaseModel):
    """What one folder name, or one value of a column, was taken for.

    Attributes:
        value: as it is written.
        gender: one of `GENDERS`; None where it was not understood.
        files: how many have it.
    """

    model_config = ConfigDict(frozen=True)

    value: str
    gender: str | None
    files: int


class LabelReport(BaseModel):
    """What was recognised in an archive, told before it is trained on.

    Attributes:
        source: where the labels are taken from; None where no file has any.
        tables: names of the tables that were read.
        columns: `file`, `gender`, `age`, `ethnicity` → the table's column.
        values: what each folder name or value was taken for, the most frequent first.
        labelled: files with a gender.
        unlabelled: files without one.
        examples: some of the names of these.
        with_age: files with an age.
        with_ethnicity: files with an ethnicity.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: LabelSource | None
    tables: tuple[str, ...] = ()
    columns: dict[str, str] = {}
    values: tuple[LabelValue, ...] = ()
    labelled: int = 0
    unlabelled: int = 0
    examples: tuple[str, ...] = ()
    with_age: int = 0
    with_ethnicity: int = 0

    @property
    def text(self) -> str:
        """What was recognised, in one line for people."""
        meanings = ", ".join(
            f"{value.value} = {value.gender or 'not understood'} ({value.files:,})" for value in self.values[:8]
        )
        if self.source is None:
            nothing = f"no labels recognised in {self.unlabelled:,} files"
            return f"{nothing}; {meanings}" if meanings else nothing
        where = {
            "names": "file names",
            "folders": "folders",
            "table": f"{', '.join(self.tables[:3])}, column {self.columns.get('gender', 'gender')}",
        }[self.source]
        parts = [f"labels from {where}", meanings or f"{self.labelled:,} files"]
        parts.append(f"age for {self.with_age:,}, ethnicity for {self.with_ethnicity:,}")
        if self.unlabelled:
            such = ", ".join(map(repr, self.examples[:3]))
            files = "1 file" if self.unlabelled == 1 else f"{self.unlabelled:,} files"
            parts.append(f"{files} without a label, such as {such}")
        return "; ".join(parts)
