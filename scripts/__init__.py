"""Programs beside the package: hosts, measurements and tools, run from the root of the repository."""
