"""The command line: `walpool COMMAND`, one file a command.

Holds: data goes to stdout and talk to stderr, a command ends with a code of `exits.Exit`, and what went wrong is one
line that a person can read, never a traceback.
"""
