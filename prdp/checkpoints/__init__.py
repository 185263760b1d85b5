"""What a run leaves behind, and how it goes on: checkpoints, their mirror, the lock of its folder."""
