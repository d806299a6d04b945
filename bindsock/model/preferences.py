"""What the user wants of a decision: which interfaces may be used, what they cost, what becomes of tunnels."""

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
    """What may be chosen, and what is to happen when nothing can be.

    Patterns are those of :mod:`fnmatch`, matched against the interface's name and its alternative names with regard to case.

    :raises TypeError: patterns are a bare string, or not strings
    :raises ValueError: a choice is none of its valid values
    """

    include: Sequence[str] = ()
    """If there are any, only interfaces that match one of these patterns are candidates."""
    exclude: Sequence[str] = ()
    """Interfaces that match one of these patterns are no candidates."""
    expensive: Sequence[str] = ()
    """Interfaces that cost money besides those of which the system says so. Linux never says so."""
    cost: Cost = "avoid"
    """What the expensive ones (cellular always is) are for.

    ``"avoid"``: they are taken where nothing cheaper is usable, where the system's own default route leaves by one, or where a
    tunnel says that it runs over one (its delegate). ``"cheapest"``: the same, but the tunnel's word is not taken while something
    cheaper is usable: it may be old, since some VPNs set their delegate once and never again. ``"ignore"``: they are like any
    other. ``"never"``: they are not candidates.
    """
    tunnels: Tunnels = "bypass"
    """``"bypass"``: nothing goes into a tunnel. ``"split"``: a destination for which a tunnel has the most specific route is left
    unbound, so that it goes into the tunnel; what would only follow the tunnel's default route still bypasses it."""
    on_no_interface: OnNoInterface = "error"
    """When there is no interface: fail, wait for one, or let the routing table decide (which may mean the tunnel)."""

    mark: int = 0
    """The firewall mark of every socket besides its binding, for VPNs that let marked packets pass by (Linux ``SO_MARK``, with
    CAP_NET_ADMIN or CAP_NET_RAW); none if 0. A socket that cannot be marked is not made."""

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "expensive"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        _check_mark(self.mark)
        _choice("cost", self.cost, get_args(Cost))
        _choice("tunnels", self.tunnels, get_args(Tunnels))
        _choice("on_no_interface", self.on_no_interface, get_args(OnNoInterface))


Preferences.__init__ = known_keywords_only(Preferences.__init__)  # type: ignore[method-assign]


def is_expensive(interface: Interface, preferences: Preferences) -> bool:
    """Whether using the interface costs money: the system says so, it is cellular, or the preferences name it."""
    return interface.expensive or interface.kind is InterfaceKind.CELLULAR or _match(interface, preferences.expensive) is not None


def exclusion(interface: Interface, preferences: Preferences) -> str | None:
    """Why the preferences keep the interface out, ``None`` where they do not."""
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
        raise ValueError(f"mark must be a number of 32 bits, not {value!r}")


def _choice(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        *others, last = map(repr, valid)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")
