"""The network on CUDA devices."""
