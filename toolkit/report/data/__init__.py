"""What a report shows: run directories read, seeds aggregated, numbers as tables. No HTML."""
