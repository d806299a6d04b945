"""Benchmarks. Figures are medians with their spread and, if two ways are compared, ratios from the same run."""
