"""What the sections of a configuration have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Entries that are known, numbers that are finite; everything else is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)
