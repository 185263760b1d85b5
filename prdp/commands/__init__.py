"""One file a command: from its arguments to the rooms that do the work."""
