"""The command line: `rbvsr upscale in.mkv out.mkv` and what belongs to it. The layer above `filter`."""
