"""`ucaptcha batch`: a file of tasks in, a file of results out, across interruptions.

What makes it safe to start again, whatever ended it: a result is a line of the output, appended by one write; a paid
task is a row of the journal beside it, written before the task is sent and holding its solution before the line is
written. So a job is in the output (then it is skipped), in the journal (then it is taken up, and nothing is
paid), or in neither (then nothing was sent).
"""
