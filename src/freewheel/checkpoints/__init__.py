"""Checkpoints: the whole state of a run, written so that a crash at any moment leaves a complete one.

A state is a tree of dictionaries, lists, numbers and tensors. ``tree.py`` turns it into safetensors and JSON,
``folder.py`` writes it atomically and finds the newest complete one, ``saver.py`` writes while training goes
on, ``cut.py`` takes the state of a run and puts it back.
"""
