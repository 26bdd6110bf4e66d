"""The commands of `lossproof`, one module each; heavy imports wait until a command runs."""
