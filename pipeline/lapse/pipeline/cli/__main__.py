"""`python -m lapse.pipeline.cli`: the program where its script is not on the path."""

from lapse.pipeline.cli import main

if __name__ == "__main__":
    main()
