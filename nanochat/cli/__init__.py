"""The command line: the parser of its arguments, and what each command does."""
