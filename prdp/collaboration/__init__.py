"""A cheap model that works and a dear one that it learns from, or asks."""
