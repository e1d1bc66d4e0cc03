"""What a study searches: ranges of numbers and choices, in the terms of recipes and in Optuna's."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, Field, model_validator


class Range(BaseModel, frozen=True, extra="forbid"):
    """Numbers between two ends."""

    name: Literal["range"] = "range"
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(False, description="as likely in each factor of ten")
    whole: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low must be below high, and above 0 with log, but got low={self.low} high={self.high}")
        return self

    def distribution(self) -> BaseDistribution:
        """Return it in Optuna's terms."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def examples(self) -> list[Any]:
        """Return the ends, to be tried against the config before the first trial."""
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]


class Choice(BaseModel, frozen=True, extra="forbid"):
    """One of several values."""

    name: Literal["choice"] = "choice"
    values: tuple[bool | int | float | str, ...] = Field(min_length=1, description="what there is to choose from")

    def distribution(self) -> BaseDistribution:
        """Return it in Optuna's terms."""
        return CategoricalDistribution(self.values)

    def examples(self) -> list[Any]:
        """Return all values."""
        return list(self.values)


Space = Mapping[str, Annotated[Range | Choice, Field(discriminator="name")]]
