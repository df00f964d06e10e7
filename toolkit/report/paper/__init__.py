"""The ModeRNN paper's tables: its numbers, ours beside them, and the files."""
