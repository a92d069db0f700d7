"""Reading what others wrote. Every file and every text from outside goes through one of the modules here.

What is unusable is refused by name before anything of its size is allocated: :mod:`.limits` says how much is read.
"""
