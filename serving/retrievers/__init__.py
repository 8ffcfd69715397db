"""Ways to find the vectors with the largest inner product among those allowed; `plan.py` says which way a search takes."""
