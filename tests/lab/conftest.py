"""The laboratory's own fixture."""

from bindsock.testing.lab.fixtures import lab as lab
