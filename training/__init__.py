"""Preparation of training data, and training of the network. Imports the model; nothing that is installed imports it.

Axes of clips before they become tensors: (T, H, W, 3) uint8, RGB, gamma-encoded. `lr` and `hr` are low and high
resolution; hr is S = 4 times as high and wide as lr.
"""
