"""The servers of the integrations' tests, for curl."""

from tests.integrations.conftest import servers

__all__ = ["servers"]
