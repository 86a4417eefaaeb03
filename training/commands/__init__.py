"""The commands of `python -m training`, one module each: add_arguments(parser), run(arguments) -> exit status."""
