"""Worlds of our own making, each with its models, prompts and rewards."""
