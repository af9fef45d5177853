"""The upstreams of a router: which of them can take a request, and the models that they serve together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from plugserve.core.errors import EngineUnavailableError, RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.router.upstream import Upstream


class Fleet:
    """All upstreams, in the order of the settings."""

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._upstreams = tuple(upstreams)

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._upstreams)

    def __len__(self) -> int:
        return len(self._upstreams)

    @property
    def num_up(self) -> int:
        return sum(one.is_up for one in self._upstreams)

    def named(self, name: str) -> Upstream | None:
        return next((one for one in self._upstreams if one.name == name), None)

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none: the first one of the first upstream that has any."""
        return next((one.first_model for one in self._upstreams if one.models), None)

    def models(self) -> list[Mapping[str, Any]]:
        """The entries of /v1/models of all upstreams that are up, each model once."""
        merged: dict[str, Mapping[str, Any]] = {}
        for upstream in self._upstreams:
            for name, entry in upstream.models.items() if upstream.is_up else ():
                merged.setdefault(name, entry)
        return list(merged.values())

    def that_serve(self, model: str | None) -> list[Upstream]:
        """The upstreams that are up and serve model; None stands for the default model.

        Raises RequestError (404) for a model that is unknown, EngineUnavailableError (503) for one that is known, or
        may be, when no upstream that serves it is up.
        """
        name = model if model is not None else self.default_model
        knowing = [one for one in self._upstreams if one.serves(name)] if name is not None else []
        up = [one for one in knowing if one.is_up]
        if up:
            return up
        if knowing:
            raise EngineUnavailableError(f"No server of the model {shown(name)} is up; try again in a moment.")
        if name is None or any(one.state == "unknown" or not one.models for one in self._upstreams):
            raise EngineUnavailableError("No server that could serve this request is up; try again in a moment.")
        raise RequestError(
            f"The model {shown(name)} is not served here; GET /v1/models lists those that are.",
            status=404,
            code="model_not_found",
            param="model",
        )

    def all_that_serve(self, models: Collection[str]) -> list[Upstream]:
        """The upstreams that are up and serve one of models; all that are up if none does."""
        up = [one for one in self._upstreams if one.is_up]
        return [one for one in up if any(one.serves(model) for model in models)] or up


def readiest(upstreams: Sequence[Upstream], model: str | None) -> list[Upstream]:
    """Those that can serve model soonest: upstreams that have loaded it come before those that would have to."""
    ranks = [upstream.loading_rank(model) for upstream in upstreams]
    return [upstream for upstream, rank in zip(upstreams, ranks, strict=True) if rank == min(ranks)]
