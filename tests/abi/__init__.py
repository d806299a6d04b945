"""A C compiler compares Darwin's structures and constants with Apple's headers: ``python -m tests.abi``."""
