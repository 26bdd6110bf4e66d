"""`python -m lossproof`, which is also what torchrun starts."""

from lossproof.cli import main

main()
