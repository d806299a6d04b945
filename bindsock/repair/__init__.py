"""Repairs: adds default routes for bound sockets if a VPN has removed them, keeps them up to date, and removes them."""

from bindsock.repair.plan import Impossible, Plan, plan
from bindsock.repair.repairer import Repairer

__all__ = ["Impossible", "Plan", "Repairer", "plan"]
