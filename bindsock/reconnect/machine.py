"""The life of a connection that is replaced when its path is lost: one table, without sockets, tasks or a clock.

The program holds one stable transport. Beneath it is the *current* connection, and for some time the *new* one. What happens
is an :class:`Event`; :data:`TABLE` gives the next state and the actions for
:class:`~bindsock.reconnect.controller.Controller` to take, in order. The rules behind the table:

1. What the program writes goes to the current connection. From the *cut* on it is held until the hook has run on the new
   connection. It never goes to both, and nothing goes to the current connection after the cut.
2. If the current path works, the new connection is made first. The cut comes when it is ready, and the old connection is
   half-closed and drained. If no new connection can be made, the old one stays untouched.
3. If the current path is dead, the cut comes at once.
4. If the current path is stalled (no carrier, no route), the new connection is dialled at once. The cut comes when it is ready
   and the path is still stalled. If the path comes back first, the old connection stays untouched.
5. If the new connection fails before the hook is done, the replacement starts over. The deadline does not, so the replacement
   ends: with a live connection or with one error.
6. Once either side has sent its end of file, the connection is not replaced any more.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """Where in its life a connection is."""

    LIVE = "live"
    DIALLING = "dialling"
    """The current connection works and is used; a better one is being dialled."""
    STALLED = "stalled"
    """The current connection has no carrier or no route, and is used all the same; a new one is being dialled."""
    WAITING = "waiting"
    """The new connection is ready; the path of the current one, which is stalled, may come back for a moment more."""
    DRAINING = "draining"
    """The new connection is ready. The current one is not written to any more; what is in flight from the peer is received."""
    RECONNECTING = "reconnecting"
    """The current connection is dead; a new one is being dialled, or will be after a pause."""
    RESUMING = "resuming"
    """The program's hook runs on the new connection."""
    FINISHING = "finishing"
    """One side has sent its end of file, or the program has closed. The connection will not be replaced."""
    CLOSED = "closed"


class Event(enum.Enum):
    """What can happen to it."""

    LOST = "lost"
    """The current connection cannot work any more, and another could."""
    BETTER = "better"
    """The current connection works, and a new one would leave by another interface."""
    STAYS = "stays"
    """The current connection works, and a new one would leave by the same interface."""
    STALLED = "stalled"
    """The current connection has no carrier or no route, and another could be made."""
    OVERDUE = "overdue"
    """The current connection has been stalled for long."""
    GIVEN_UP = "given up"
    """The stalled path of the current connection is not waited for any longer, now that the new one is ready."""
    BROKE = "broke"
    """The current connection has ended with an error of the path: nobody answered, or nothing could be sent."""
    ENDED = "ended"
    """The current connection has ended for another reason, or without one."""
    FINISHED = "finished"
    """The peer has sent its end of file over the current connection."""
    USABLE = "usable"
    """The network has changed, and a connection could be made."""
    DIALLED = "dialled"
    """The new connection is ready, with TLS if it has that."""
    DIAL_FAILED = "dial failed"
    RETRY = "retry"
    """The pause after a failed dial is over."""
    DRAINED = "drained"
    """Nothing more comes from the current connection, or it has taken too long."""
    NEW_LOST = "new lost"
    """The new connection has ended, or cannot work any more."""
    RESUMED = "resumed"
    """The hook is done."""
    HOOK_FAILED = "hook failed"
    """The hook has raised."""
    EXPIRED = "expired"
    """The time for the replacement is over."""
    CLOSE = "close"
    """The program closes, and all that it wrote has been handed to the current connection or will never be."""
    ABORT = "abort"
    """The program aborts."""


class Action(enum.Enum):
    """What is to be done."""

    CUT = "cut"
    """From now on, hold what the program writes."""
    DIAL = "dial"
    PAUSE = "pause"
    """Dial again after a pause, longer each time."""
    HURRY = "hurry"
    """End the pause, if there is one."""
    STOP_DIALLING = "stop dialling"
    """Forget the dial, or the pause, that is under way."""
    START_CLOCK = "start clock"
    """Start the time for the replacement, or start it again."""
    STOP_CLOCK = "stop clock"
    HOLD_OUT = "hold out"
    """Wait for the path of the current connection to come back, if that has not been tried for long enough yet."""
    DRAIN = "drain"
    """Half-close the current connection, and receive what comes."""
    STOP_WAITING = "stop waiting"
    """End what HOLD_OUT or DRAIN has begun."""
    DROP = "drop"
    """Forget the current connection."""
    RUN_HOOK = "run hook"
    """Start the hook on the new connection."""
    STOP_HOOK = "stop hook"
    DROP_NEW = "drop new"
    GO_ON = "go on"
    """The new connection becomes the current one; send what was held."""
    REFRESH = "refresh"
    """Compare with the newest reading of the network: what has happened meanwhile raises no further event."""
    TELL_FINISHED = "tell finished"
    """Pass the peer's end of file on."""
    CLOSE = "close"
    """Let the current connection send what it has, and close it."""
    TELL_ENDED = "tell ended"
    """Tell the program how the current connection ended."""
    TELL_CLOSED = "tell closed"
    """Tell the program that the connection is closed."""
    GIVE_UP = "give up"
    """Tell the program that the connection is lost, and why."""


Outcome = tuple[State, tuple[Action, ...]]

_S, _E, _A = State, Event, Action

_CLEAN_UP = {
    _S.LIVE: (),
    _S.DIALLING: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.STALLED: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.WAITING: (_A.STOP_CLOCK, _A.STOP_WAITING, _A.DROP_NEW),
    _S.DRAINING: (_A.STOP_CLOCK, _A.STOP_WAITING, _A.DROP_NEW),
    _S.RECONNECTING: (_A.STOP_CLOCK, _A.STOP_DIALLING),
    _S.RESUMING: (_A.STOP_CLOCK, _A.STOP_HOOK, _A.DROP_NEW),
    _S.FINISHING: (),
}
"""What is under way in each state, and ends with it."""


def _closed(state: State, *actions: Action) -> Outcome:
    return _S.CLOSED, (*_CLEAN_UP[state], _A.DROP, *actions)


_START_OVER: Outcome = (_S.RECONNECTING, (_A.STOP_HOOK, _A.DROP_NEW, _A.PAUSE))
_LOSE: Outcome = (_S.RECONNECTING, (_A.CUT, _A.START_CLOCK, _A.DIAL))
_LOSE_WHILE_DIALLING: Outcome = (_S.RECONNECTING, (_A.CUT, _A.START_CLOCK))
_SWITCH: Outcome = (_S.RESUMING, (_A.DROP, _A.RUN_HOOK))
_SWITCH_AFTER_DRAINING: Outcome = (_S.RESUMING, (_A.STOP_WAITING, _A.DROP, _A.RUN_HOOK))
_CUT_AND_SWITCH: Outcome = (_S.RESUMING, (_A.STOP_WAITING, _A.CUT, _A.DROP, _A.RUN_HOOK))

_ROWS: dict[State, dict[Event, Outcome]] = {
    _S.LIVE: {
        _E.LOST: _LOSE,
        _E.BROKE: _LOSE,
        _E.BETTER: (_S.DIALLING, (_A.START_CLOCK, _A.DIAL)),
        _E.STALLED: (_S.STALLED, (_A.START_CLOCK, _A.DIAL)),
        _E.FINISHED: (_S.FINISHING, (_A.TELL_FINISHED,)),
        _E.ENDED: _closed(_S.LIVE, _A.TELL_ENDED),
        _E.CLOSE: (_S.FINISHING, (_A.CLOSE,)),
        _E.ABORT: _closed(_S.LIVE, _A.TELL_CLOSED),
    },
    _S.DIALLING: {
        # The dial goes on; it leads to wherever a connection can be made.
        _E.LOST: _LOSE_WHILE_DIALLING,
        _E.BROKE: _LOSE_WHILE_DIALLING,
        _E.STALLED: (_S.STALLED, ()),
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.DIALLING]),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.DIALLING], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.DIALLING, _A.TELL_ENDED),
        _E.DIALLED: (_S.DRAINING, (_A.CUT, _A.DRAIN)),
        _E.DIAL_FAILED: (_S.DIALLING, (_A.PAUSE,)),
        _E.RETRY: (_S.DIALLING, (_A.DIAL,)),
        # The current connection works. The next change of the network is another occasion.
        _E.EXPIRED: (_S.LIVE, _CLEAN_UP[_S.DIALLING]),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.DIALLING], _A.CLOSE)),
        _E.ABORT: _closed(_S.DIALLING, _A.TELL_CLOSED),
    },
    _S.STALLED: {
        _E.LOST: _LOSE_WHILE_DIALLING,
        _E.BROKE: _LOSE_WHILE_DIALLING,
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.STALLED]),
        _E.BETTER: (_S.DIALLING, ()),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.STALLED], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.STALLED, _A.TELL_ENDED),
        _E.DIALLED: (_S.WAITING, (_A.HOLD_OUT,)),
        _E.DIAL_FAILED: (_S.STALLED, (_A.PAUSE,)),
        _E.RETRY: (_S.STALLED, (_A.DIAL,)),
        _E.EXPIRED: _closed(_S.STALLED, _A.GIVE_UP),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.STALLED], _A.CLOSE)),
        _E.ABORT: _closed(_S.STALLED, _A.TELL_CLOSED),
    },
    _S.WAITING: {
        _E.LOST: _CUT_AND_SWITCH,
        _E.BROKE: _CUT_AND_SWITCH,
        _E.GIVEN_UP: _CUT_AND_SWITCH,
        _E.STALLED: (_S.WAITING, (_A.HOLD_OUT,)),
        _E.EXPIRED: _closed(_S.WAITING, _A.GIVE_UP),
        _E.STAYS: (_S.LIVE, _CLEAN_UP[_S.WAITING]),
        _E.BETTER: (_S.DRAINING, (_A.STOP_WAITING, _A.CUT, _A.DRAIN)),
        _E.FINISHED: (_S.FINISHING, (*_CLEAN_UP[_S.WAITING], _A.TELL_FINISHED)),
        _E.ENDED: _closed(_S.WAITING, _A.TELL_ENDED),
        _E.NEW_LOST: (_S.STALLED, (_A.STOP_WAITING, _A.DROP_NEW, _A.PAUSE)),
        _E.CLOSE: (_S.FINISHING, (*_CLEAN_UP[_S.WAITING], _A.CLOSE)),
        _E.ABORT: _closed(_S.WAITING, _A.TELL_CLOSED),
    },
    _S.DRAINING: {
        _E.LOST: _SWITCH_AFTER_DRAINING,
        _E.BROKE: _SWITCH_AFTER_DRAINING,
        _E.ENDED: _SWITCH_AFTER_DRAINING,
        _E.FINISHED: _SWITCH_AFTER_DRAINING,
        _E.DRAINED: _SWITCH_AFTER_DRAINING,
        # The current connection is half-closed already: there is no way back to it.
        _E.NEW_LOST: (_S.RECONNECTING, (_A.STOP_WAITING, _A.DROP_NEW, _A.PAUSE)),
        _E.EXPIRED: _closed(_S.DRAINING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.DRAINING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.DRAINING, _A.TELL_CLOSED),
    },
    _S.RECONNECTING: {
        _E.USABLE: (_S.RECONNECTING, (_A.HURRY,)),
        _E.DIALLED: _SWITCH,
        _E.DIAL_FAILED: (_S.RECONNECTING, (_A.PAUSE,)),
        _E.RETRY: (_S.RECONNECTING, (_A.DIAL,)),
        _E.EXPIRED: _closed(_S.RECONNECTING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.RECONNECTING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.RECONNECTING, _A.TELL_CLOSED),
    },
    _S.RESUMING: {
        _E.RESUMED: (_S.LIVE, (_A.STOP_CLOCK, _A.GO_ON, _A.REFRESH)),
        _E.HOOK_FAILED: _closed(_S.RESUMING, _A.GIVE_UP),
        _E.NEW_LOST: _START_OVER,
        _E.EXPIRED: _closed(_S.RESUMING, _A.GIVE_UP),
        _E.CLOSE: _closed(_S.RESUMING, _A.TELL_CLOSED),
        _E.ABORT: _closed(_S.RESUMING, _A.TELL_CLOSED),
    },
    _S.FINISHING: {
        _E.LOST: _closed(_S.FINISHING, _A.GIVE_UP),
        _E.OVERDUE: _closed(_S.FINISHING, _A.GIVE_UP),
        _E.BROKE: _closed(_S.FINISHING, _A.TELL_ENDED),
        _E.ENDED: _closed(_S.FINISHING, _A.TELL_ENDED),
        _E.FINISHED: (_S.FINISHING, (_A.TELL_FINISHED,)),
        _E.CLOSE: (_S.FINISHING, (_A.CLOSE,)),
        _E.ABORT: _closed(_S.FINISHING, _A.TELL_CLOSED),
    },
    _S.CLOSED: {},
}

TABLE: Mapping[tuple[State, Event], Outcome] = MappingProxyType(
    {(state, event): row.get(event, (state, ())) for state, row in _ROWS.items() for event in Event}
)
"""What comes of each event in each state. An event that is not listed above comes too late to matter, and changes nothing."""


class Machine:
    """One connection's way through the table."""

    def __init__(self) -> None:
        self.state: State = State.LIVE

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take an event.

        :return: what to do, in this order
        """
        self.state, actions = TABLE[self.state, event]
        return actions
