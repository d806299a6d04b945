"""asyncio connections that leave by the right network interface and stay on it."""
