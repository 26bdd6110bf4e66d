"""What checks are made of: every loss pattern at once, drawn histories, exact tests, wrong variants to plant."""
