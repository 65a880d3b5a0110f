"""The Lambda runtime: a client of the Runtime API, and the loop around the handler."""
