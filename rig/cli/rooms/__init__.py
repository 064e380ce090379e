"""Commands about rooms: what a plan's room is like, and sweeps over thousands of conditions in it."""
