"""The laboratory's servers, for programs."""

from __future__ import annotations

from tests.integrations.conftest import servers

__all__ = ["servers"]
