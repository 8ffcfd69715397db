"""Searches for the vectors with the largest inner products among those allowed."""
