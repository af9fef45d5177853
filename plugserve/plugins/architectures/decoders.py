"""The built-in architectures as a plugin. Hands out core's own functions, so it reaches into core's models."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.contracts import ArchitectureFunction
from plugserve.core.hookspecs import hookimpl
from plugserve.core.models.families import FAMILIES


@hookimpl
def plugserve_architectures() -> Mapping[str, ArchitectureFunction]:
    return FAMILIES
