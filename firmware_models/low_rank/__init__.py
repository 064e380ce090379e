"""Networks with fewer parameters: layers split into factors by singular values, and the ranks to split them at."""

from firmware_models.low_rank.factors import Factored, FactoredConv, FactoredLinear, Reshape, folded

__all__ = ["Factored", "FactoredConv", "FactoredLinear", "Reshape", "folded"]
