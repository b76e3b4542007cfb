"""What settings are made of: numbers that are not guessed, tables that take no other keys."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from fedspeech.diff.budget import parse
from fedspeech.errors import DiffError


def expecting(expected: str) -> WrapValidator:
    """One message for a value that none of several types takes, instead of one for each type."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"expected {expected}") from None

    return WrapValidator(check)


def _a_folder(name: str) -> str:
    if {"/", "\0"} & set(name) or not name.strip("."):
        raise ValueError("expected the name of a folder")
    return name


folder_name = AfterValidator(_a_folder)
# Strict: a number is not guessed out of a string or a truth value.
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Real = Annotated[float, Field(strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Speakers = Annotated[
    Positive | tuple[str, ...] | str,
    expecting('a number of speakers (at least 1), a list of ids, the name of a file, or "rest"'),
]
Together = Annotated[
    Positive | Literal["auto"], expecting('a number of speakers (at least 1) or "auto"')
]
FieldValue = Annotated[Whole | str, expecting("a whole number or a string")]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Sample = Annotated[
    Positive | Share,
    expecting("a share of the speakers (above 0, at most 1.0) or a number of them (at least 1)"),
]
Available = Annotated[
    Share | str, expecting("a rate (above 0, at most 1) or the name of a file with a trace")
]


def _budget(text: str) -> str:
    try:
        parse(text, full=1)
    except DiffError as error:
        raise ValueError(str(error).removeprefix("budget: ").partition(", found")[0]) from None
    return text


Budget = Annotated[str, AfterValidator(_budget)]
"""As `fedspeech.diff.budget.parse` reads it."""


def each_once(listed: tuple[Any, ...]) -> tuple[Any, ...]:
    """A validator: at least one value, and none of them twice."""
    if not listed or len(set(listed)) < len(listed):
        raise ValueError("expected at least one, and each once")
    return listed


class Settings(BaseModel):
    """Unknown keys are refused, and so are values that are NaN or infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
