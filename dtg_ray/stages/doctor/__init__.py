"""`dtg doctor`: is everything there that a study needs, on this machine and on every node, and what to do if not."""
