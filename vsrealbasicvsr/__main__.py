"""`python -m vsrealbasicvsr`, an alias of the command rbvsr."""

from vsrealbasicvsr.app.cli import main

if __name__ == "__main__":
    main()
