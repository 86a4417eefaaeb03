"""`python -m training benchmark`: VideoLQ, measured as the paper measures it.

From the inside out: sequences (clips on disk), measured (a network's output for the measured frames), naturalness
(metrics without ground truth), methods (rows: networks, other models, frames of other programs), kept (finished scores
on disk), published (the paper's numbers) and tables.
"""
