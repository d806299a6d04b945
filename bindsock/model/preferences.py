"""The user's preferences for decisions: which interfaces may be used, what they cost, how to treat tunnels."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from bindsock.model.network import Interface, InterfaceKind
from bindsock.options import known_keywords_only

Cost: TypeAlias = Literal["avoid", "cheapest", "ignore", "never"]
Tunnels: TypeAlias = Literal["bypass", "split"]
OnNoInterface: TypeAlias = Literal["error", "wait", "unbound"]


@dataclass(frozen=True, slots=True)
class Preferences:
    """Which interfaces may be used, and what to do if there is none.

    Patterns are those of :mod:`fnmatch`. They are matched against the interface's name and its alternative names; case matters.

    :raises TypeError: patterns are a bare string, or not strings, or the mark is not a number
    :raises ValueError: a value is not one of the choices, or the mark has more than 32 bits
    """

    include: Sequence[str] = ()
    """If given, only interfaces that match one of these patterns are candidates."""
    exclude: Sequence[str] = ()
    """Interfaces that match one of these patterns are not candidates."""
    expensive: Sequence[str] = ()
    """Interfaces that cost money, in addition to those that the system reports as expensive. Linux reports none."""
    cost: Cost = "avoid"
    """How to treat expensive interfaces. Cellular interfaces are always expensive.

    ``"avoid"``: use them if nothing cheaper is usable, if the system's own default route leaves by one, or if one is the delegate
    of a tunnel. ``"cheapest"``: the same, but ignore the delegate while something cheaper is usable. The delegate may be out of
    date, because some VPNs set it only once. ``"ignore"``: treat them like the others. ``"never"``: do not use them.
    """
    tunnels: Tunnels = "bypass"
    """``"bypass"``: use no tunnel. ``"split"``: leave a socket unbound if a tunnel has the most specific route to its
    destination, so that it enters the tunnel; destinations of the tunnel's default route still bypass it."""
    on_no_interface: OnNoInterface = "error"
    """What to do if no interface may be used: ``"error"`` fails, ``"wait"`` waits for one, ``"unbound"`` lets the routing table
    decide, which may choose the tunnel."""

    mark: int = 0
    """A firewall mark for every socket, for VPNs that let marked packets bypass the tunnel (Linux ``SO_MARK``, with CAP_NET_ADMIN
    or CAP_NET_RAW); 0 for none. If the mark cannot be set, the socket is not made."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "expensive"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        _check_mark(self.mark)
        _choice("cost", self.cost, get_args(Cost))
        _choice("tunnels", self.tunnels, get_args(Tunnels))
        _choice("on_no_interface", self.on_no_interface, get_args(OnNoInterface))


Preferences.__init__ = known_keywords_only(Preferences.__init__)  # type: ignore[method-assign]


def preferences_or_default(value: object) -> Preferences:
    """The value of a keyword ``preferences``, checked.

    :raises TypeError: it is neither :class:`Preferences` nor ``None``
    """
    if value is None:
        return Preferences()
    if not isinstance(value, Preferences):
        raise TypeError(f"preferences must be a bindsock.Preferences, not {value!r}")
    return value


def is_expensive(interface: Interface, preferences: Preferences) -> bool:
    """Whether using the interface costs money: the system reports it, it is cellular, or the preferences name it."""
    return interface.expensive or interface.kind is InterfaceKind.CELLULAR or _match(interface, preferences.expensive) is not None


def exclusion(interface: Interface, preferences: Preferences) -> str | None:
    """Why the preferences exclude the interface; ``None`` if they do not."""
    pattern = _match(interface, preferences.exclude)
    if pattern is not None:
        return f"excluded by {pattern!r}"
    if preferences.include and _match(interface, preferences.include) is None:
        return f"not included by {' or '.join(map(repr, preferences.include))}"
    return None


def _match(interface: Interface, patterns: Sequence[str]) -> str | None:
    names = (interface.name, *interface.alternative_names)
    return next((pattern for pattern in patterns if any(fnmatch.fnmatchcase(name, pattern) for name in names)), None)


def _patterns(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of patterns, not the string {value!r}: write [{value!r}]")
    if not isinstance(value, Sequence) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{name} must be a sequence of strings, not {value!r}")
    return tuple(value)


def _check_mark(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"mark must be a number, not {value!r}")
    if not 0 <= value <= 0xFFFFFFFF:
        raise ValueError(f"mark must be a 32-bit number, not {value!r}")


def _choice(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        *others, last = map(repr, valid)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")
