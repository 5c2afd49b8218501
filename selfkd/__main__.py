"""`python -m selfkd` is the command line."""

from selfkd.cli import main

if __name__ == "__main__":
    main()
