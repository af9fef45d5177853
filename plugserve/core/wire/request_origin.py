"""Where a request comes from, for the engine's flight recorder."""

from __future__ import annotations

from typing import Final

import msgspec


class RequestOrigin(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What the engine's flight recorder notes of a request and the engine doesn't need: the id that its client knows,
    its route, the seconds that the server had it before it was sent, and those of them that it waited for the model."""

    id: str = ""
    route: str = ""
    before_s: float = 0.0
    load_wait_s: float = 0.0


NO_ORIGIN: Final = RequestOrigin()
