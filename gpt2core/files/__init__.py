"""The files of a model directory and their formats."""
