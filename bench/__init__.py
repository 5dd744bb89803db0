"""Speed and memory of each op beside the library that people use for it today. `python -m bench --help`."""
