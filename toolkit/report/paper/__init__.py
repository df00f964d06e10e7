"""The tables of the ModeRNN paper: its numbers, the numbers of a sweep, and the output files."""
