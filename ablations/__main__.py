"""`python -m ablations`: the commands of `ablations.cli`."""

from ablations.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
