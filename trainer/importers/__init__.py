"""Configurations of other trainers, translated into ours with a list of what was taken and what was not.

`read.py` recognises a file and hands it to the module of its trainer. Each option of a trainer is a row of `tables/`.
"""
