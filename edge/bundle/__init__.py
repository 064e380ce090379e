"""Bundles: what they say of themselves, how they are verified, how their model is run."""
