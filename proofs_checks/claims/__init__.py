"""The claims, one file per family. Every `Claim` in a module of this package is found; nothing else to register."""
