"""What an audit looks at: the book of a run against its single steps, and against its recording.

of_events.py     the events of a run, which any engine writes
of_recording.py  the operations of a recorded run
"""
