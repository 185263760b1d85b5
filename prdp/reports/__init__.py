"""Pages that people read: a run as one HTML file."""
