"""Darwin's structures and constants, held against Apple's headers by a C compiler: ``python -m tests.abi``."""
