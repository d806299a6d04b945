"""The settings for a program's connections, which an environment variable can pass on to its child processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from bindsock.factory import TransportFactory
from bindsock.options import check_better_path, check_interface
from bindsock.routing.effective import Preferences

if TYPE_CHECKING:
    from bindsock.options import BetterPath


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """The settings for all connections of a program.

    :param interface: the name of the only interface to use, without detection
    :param preferences: how to choose among interfaces
    :param better_path: what to do with working streams when another interface becomes better
    :param proxy: the URL of a proxy for programs that are not Python
    :param journal: a file to which all processes of the program append the outcomes of their connections
    """

    interface: str | None = None
    preferences: Preferences = field(default_factory=Preferences)
    better_path: BetterPath = "auto"
    proxy: str | None = None
    journal: str | None = None

    def __post_init__(self) -> None:
        check_interface(self.interface)
        check_better_path(self.better_path)

    def factory(self) -> TransportFactory:
        """A factory for one event loop, or for use without an event loop."""
        return TransportFactory(self.preferences, interface=self.interface, better_path=self.better_path)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunPolicy:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: it is something else
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "preferences": Preferences(**values["preferences"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a policy of bindsock run: {text!r}") from error
