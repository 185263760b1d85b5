"""Puts the room's helper module on the path."""

from __future__ import annotations


