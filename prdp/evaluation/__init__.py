"""Judging finished models: any set of them on the same prompts and noise, by any set of rewards."""
