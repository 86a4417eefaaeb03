"""Implementations of the network's steps, one for each kind of device."""
