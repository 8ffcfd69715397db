"""Live events: events of users while a version is served, until the next training."""
