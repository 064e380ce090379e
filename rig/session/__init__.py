"""A session: one run of a plan in one air, from the first trial to a folder that tells everything."""
