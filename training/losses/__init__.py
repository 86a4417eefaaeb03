"""The losses of the generator and of the discriminator: a file each, a line of `LossSettings` each.

From the inside out: distances, kinds; a file for each loss; settings, the table of all losses.
"""
