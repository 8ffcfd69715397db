"""The contract of Passerelle: data schema, manifests, id maps, features, metrics.

No torch, no Ray, no Triton.
"""

__version__ = "0.1.0"
