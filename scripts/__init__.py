"""Programs beside the package: measurements, conversions and tools, run from the root of the repository."""
