"""`python -m vsrealbasicvsr`: the same as the command rbvsr."""

from vsrealbasicvsr.app.cli import main

if __name__ == "__main__":
    main()
