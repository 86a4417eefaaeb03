"""What `python -m training benchmark` is made of: VideoLQ, and how the paper measures it.

From the inside out: sequences (clips on disk), measured (a network's pictures of the few frames that are measured),
naturalness (metrics without a truth), methods (the rows: networks, other models, other people's frames), kept (what is
finished stays on disk), published (the paper's numbers) and tables.
"""
