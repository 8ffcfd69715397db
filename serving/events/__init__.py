"""Live events: what users do while a version is served, until the next training."""
