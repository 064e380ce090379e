"""Mirrored sources: the compiled loops, the shoebox, the polygon, and rays where mirroring takes too long."""
