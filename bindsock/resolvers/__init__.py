"""Resolves names over the effective interface, so that a VPN's name servers neither see nor answer the queries."""

from bindsock.resolvers.answers import Answer, Lookup, NoResolver
from bindsock.resolvers.dnssd import DnsSdLookup
from bindsock.resolvers.interface import InterfaceResolver
from bindsock.resolvers.resolved import ResolvedLookup
from bindsock.resolvers.servers import ConfiguredLookup, ServerLookup

__all__ = [
    "Answer",
    "ConfiguredLookup",
    "DnsSdLookup",
    "InterfaceResolver",
    "Lookup",
    "NoResolver",
    "ResolvedLookup",
    "ServerLookup",
]
