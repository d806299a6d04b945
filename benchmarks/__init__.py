"""Benchmarks. Figures are medians with their spread and, where two ways are compared, ratios of one and the same run."""
