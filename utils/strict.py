"""The kind of class that every group of settings is: frozen, and strict about its keys and types."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A group of settings: frozen, no unknown keys, no conversion of types, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, protected_namespaces=())
