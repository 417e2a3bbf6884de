"""`python -m cprune.cli` does what `cprune` does."""

from cprune.cli.main import main

if __name__ == "__main__":
    main()
