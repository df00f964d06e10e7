"""What every script shares: options and errors, tables for terminals, the console script."""
