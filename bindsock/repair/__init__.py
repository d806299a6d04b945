"""Routes for bound sockets where a VPN has left none: planned, made, kept up to date and removed."""

from bindsock.repair.plan import Impossible, Plan, plan
from bindsock.repair.repairer import Repairer

__all__ = ["Impossible", "Plan", "Repairer", "plan"]
