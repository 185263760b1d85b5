"""What every room may use: errors, names, files that are written whole."""
