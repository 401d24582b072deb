"""`python -m ftengine` is `ftengine`."""

from ftengine.cli import main

if __name__ == "__main__":
    main(prog_name="python -m ftengine")
