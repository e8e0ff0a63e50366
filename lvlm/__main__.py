"""`python -m lvlm`: see `lvlm.cli`."""

from lvlm.cli import main

if __name__ == "__main__":
    main()
