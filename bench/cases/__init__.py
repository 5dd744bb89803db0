"""The cases of each op, in the file of its name: `cases(target)` yields them."""
