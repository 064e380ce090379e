"""The command ``earshot``: one file per group of commands, heavy imports inside the commands."""
