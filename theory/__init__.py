"""What is true: loss laws as mathematics, closed forms, and their derivations. Imports nothing of `lossproof.impl`."""
