"""The command line, and everything that puts work on a Ray cluster."""

import os

# Ray forks to start its processes; gRPC's own handling of forks would write to the terminal, or crash the
# child.
# Read when gRPC starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
