"""How a program's connections are to be made, in a form that an environment variable can carry to its child processes."""

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
    """What applies to all connections of a program.

    :param interface: the name of the one interface to use, whatever detection says
    :param preferences: how to choose among interfaces
    :param better_path: what happens to streams that still work when another interface is better
    :param proxy: a proxy for programs that are not Python, as a URL
    :param journal: a file to which every process of the program adds what it did with its connections
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
        """A factory for one event loop, or for questions without one."""
        return TransportFactory(self.preferences, interface=self.interface, better_path=self.better_path)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunPolicy:
        """
        :raises ValueError: it is not what :meth:`to_json` wrote
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "preferences": Preferences(**values["preferences"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a policy of bindsock run: {text!r}") from error
