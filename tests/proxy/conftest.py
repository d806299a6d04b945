"""The servers of the integrations' tests are what curl asks for."""

from tests.integrations.conftest import servers

__all__ = ["servers"]
