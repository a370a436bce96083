"""One verb, one file. Each has `add_arguments(parser)` and `execute(arguments, command) -> exit status`."""
